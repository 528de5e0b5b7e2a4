"""The language model under the names that mlc_llm's engine calls as well as under ours.

The engine looks tokens up by `embed`, and gives the embeddings and its RNNState to what follows.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.model.causal_lm import CausalLM
from mlc_rwkv_world.model.segments import Ragged, Segments, Steps
from mlc_rwkv_world.stock import operations as ops
from mlc_rwkv_world.stock.rnn_state import RNNState, RNNStateObject, create_rnn_state


class StockLM(CausalLM):
    """CausalLM whose module also has the engine's functions."""

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.embed(input_ids)

    def _forward(
        self, x: Tensor, segments: Segments, handle: RNNStateObject, count: Any
    ) -> tuple[Tensor, RNNStateObject]:
        state = RNNState(handle, count, self.config.hidden_size, self.fields)
        logits = self.logits(x, segments, state)
        return logits, state.handle

    def prefill(self, input_embed: Tensor, state: RNNStateObject) -> tuple[Tensor, RNNStateObject]:
        x = op.reshape(input_embed, input_embed.shape[1:])
        logits, state = self._forward(x, Ragged(ops.whole_offsets(x), 1), state, 1)
        return op.reshape(logits, (1, 1, self.config.vocab_size)), state

    def decode(self, input_embed: Tensor, state: RNNStateObject) -> tuple[Tensor, RNNStateObject]:
        x = op.reshape(input_embed, input_embed.shape[1:])
        logits, state = self._forward(x, Steps(), state, 1)
        return op.reshape(logits, (1, 1, self.config.vocab_size)), state

    def batch_prefill(
        self, input_embeds: Tensor, logit_positions: Tensor, state: RNNStateObject
    ) -> tuple[Tensor, RNNStateObject]:
        # The engine lays sequences one after another and says only where each one ends.
        x = op.reshape(input_embeds, input_embeds.shape[1:])
        count = logit_positions.shape[0]
        segments = Ragged(ops.offsets_from_positions(logit_positions), count)
        logits, state = self._forward(x, segments, state, count)
        return op.reshape(logits, (1, count, self.config.vocab_size)), state

    def batch_decode(
        self, input_embeds: Tensor, state: RNNStateObject
    ) -> tuple[Tensor, RNNStateObject]:
        count, _, size = input_embeds.shape
        x = op.reshape(input_embeds, (count, size))
        logits, state = self._forward(x, Steps(), state, count)
        return op.reshape(logits, (count, 1, self.config.vocab_size)), state

    def create_rnn_state(self, max_batch_size: tirx.Var, max_history: tirx.Var) -> RNNStateObject:
        return create_rnn_state(
            max_batch_size,
            max_history,
            self.config.num_hidden_layers,
            self.config.hidden_size,
            self.fields,
        )

    def functions(self) -> dict[str, dict[str, Any]]:
        size = self.config.hidden_size
        sequence = nn.spec.Tensor([1, "seq_len", size], self.dtype)
        step = nn.spec.Tensor([1, 1, size], self.dtype)
        steps = nn.spec.Tensor(["batch_size", 1, size], self.dtype)
        handle = nn.spec.Object(object_type=RNNStateObject)
        return {
            "embed": {"input_ids": nn.spec.Tensor(["seq_len"], "int32")},
            "prefill": {"input_embed": sequence, "state": handle},
            "decode": {"input_embed": step, "state": handle},
            "batch_prefill": {
                "input_embeds": sequence,
                "logit_positions": nn.spec.Tensor(["batch_size"], "int32"),
                "state": handle,
            },
            "batch_decode": {"input_embeds": steps, "state": handle},
            "create_rnn_state": {
                "max_batch_size": int,
                "max_history": int,
                "$": {"param_mode": "none", "effect_mode": "none"},
            },
            **super().functions(),
        }
