"""A language model's exported functions: one definition of the model under two sets of names.

Stock names are those that mlc_llm's engine calls; they take its embeddings and its RNNState.
`rwkv_world_*` names take token ids, a pool of states [S, L, R, D] that they update in place, and
the slots int32 [B, 2] that each sequence reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.artifact import abi
from mlc_rwkv_world.model import operations as ops
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fields import Field, initial_rows
from mlc_rwkv_world.model.layers import Linear
from mlc_rwkv_world.model.rnn_state import RNNState, RNNStateObject, create_rnn_state
from mlc_rwkv_world.model.segments import Ragged, Segments, Steps
from mlc_rwkv_world.model.state import Pool, State
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.storage.stored import IndivisibleRow


class CausalLM(nn.Module):  # type: ignore[misc]
    """Model and head. Weights are stored as the format says, products computed in `dtype`.

    `model(config, format, dtype)` makes what is below the head; `fields` are what a layer of
    its state consists of. Raises UsageError where the format cannot store rows
    of the model's sizes.
    """

    def __init__(
        self,
        config: ModelConfig,
        fmt: Format,
        dtype: str,
        model: Callable[[ModelConfig, Format, str], Any],
        fields: Sequence[Field],
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.fields = fields
        try:
            self.model = model(config, fmt, dtype)
            self.head = Linear(config.hidden_size, config.vocab_size, fmt.matrix)
        except IndivisibleRow as error:
            raise fmt.refusal(error) from None

    def _logits(self, x: Tensor, segments: Segments, state: State) -> Tensor:
        """The residual [T, D] to float32 logits [B, V] after each sequence's last token."""
        return self.head(self.model(x, segments, state), out_dtype="float32")

    # Stock names.

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.embed(input_ids)

    def _stock(
        self, x: Tensor, segments: Segments, handle: RNNStateObject, count: Any
    ) -> tuple[Tensor, RNNStateObject]:
        state = RNNState(handle, count, self.config.hidden_size, self.fields)
        logits = self._logits(x, segments, state)
        return logits, state.handle

    def prefill(self, input_embed: Tensor, state: RNNStateObject) -> tuple[Tensor, RNNStateObject]:
        x = op.reshape(input_embed, input_embed.shape[1:])
        logits, state = self._stock(x, Ragged(ops.whole_offsets(x), 1), state, 1)
        return op.reshape(logits, (1, 1, self.config.vocab_size)), state

    def decode(self, input_embed: Tensor, state: RNNStateObject) -> tuple[Tensor, RNNStateObject]:
        x = op.reshape(input_embed, input_embed.shape[1:])
        logits, state = self._stock(x, Steps(), state, 1)
        return op.reshape(logits, (1, 1, self.config.vocab_size)), state

    def batch_prefill(
        self, input_embeds: Tensor, logit_positions: Tensor, state: RNNStateObject
    ) -> tuple[Tensor, RNNStateObject]:
        # The engine lays sequences one after another and says only where each one ends.
        x = op.reshape(input_embeds, input_embeds.shape[1:])
        count = logit_positions.shape[0]
        segments = Ragged(ops.offsets_from_positions(logit_positions), count)
        logits, state = self._stock(x, segments, state, count)
        return op.reshape(logits, (1, count, self.config.vocab_size)), state

    def batch_decode(
        self, input_embeds: Tensor, state: RNNStateObject
    ) -> tuple[Tensor, RNNStateObject]:
        count, _, size = input_embeds.shape
        x = op.reshape(input_embeds, (count, size))
        logits, state = self._stock(x, Steps(), state, count)
        return op.reshape(logits, (count, 1, self.config.vocab_size)), state

    def create_rnn_state(self, max_batch_size: tirx.Var, max_history: tirx.Var) -> RNNStateObject:
        return create_rnn_state(
            max_batch_size,
            max_history,
            self.config.num_hidden_layers,
            self.config.hidden_size,
            self.fields,
        )

    # Our own names.

    def rwkv_world_prefill(
        self, ids: Tensor, offsets: Tensor, slots: Tensor, pool: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._ours(ids, Ragged(offsets, slots.shape[0]), slots, pool)

    def rwkv_world_decode(self, ids: Tensor, slots: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        return self._ours(ids, Steps(), slots, pool)

    def rwkv_world_batch_decode(
        self, ids: Tensor, slots: Tensor, pool: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._ours(ids, Steps(), slots, pool)

    def _ours(
        self, ids: Tensor, segments: Segments, slots: Tensor, pool: Tensor
    ) -> tuple[Tensor, Tensor]:
        state = Pool(pool, slots)
        logits = self._logits(self.model.embed(ids), segments, state)
        return logits, state.tensor

    def get_default_spec(self) -> nn.spec.ModuleSpec:
        """The exported functions and the types of their arguments."""
        size = self.config.hidden_size
        ids = nn.spec.Tensor(["seq_len"], "int32")
        sequence = nn.spec.Tensor([1, "seq_len", size], self.dtype)
        steps = nn.spec.Tensor(["batch_size", 1, size], self.dtype)
        handle = nn.spec.Object(object_type=RNNStateObject)

        def states(batch: int | str) -> dict[str, nn.spec.Tensor]:
            shape = [
                "num_slots",
                self.config.num_hidden_layers,
                len(initial_rows(self.fields)),
                size,
            ]
            return {
                abi.SLOTS: nn.spec.Tensor([batch, 2], "int32"),
                abi.POOL: nn.spec.Tensor(shape, "float32"),
            }

        arguments: dict[str, dict[str, Any]] = {
            "embed": {"input_ids": ids},
            "prefill": {"input_embed": sequence, "state": handle},
            "decode": {"input_embed": nn.spec.Tensor([1, 1, size], self.dtype), "state": handle},
            "batch_prefill": {
                "input_embeds": sequence,
                "logit_positions": nn.spec.Tensor(["batch_size"], "int32"),
                "state": handle,
            },
            "batch_decode": {"input_embeds": steps, "state": handle},
            "create_rnn_state": {"max_batch_size": int, "max_history": int},
            abi.PREFILL: {
                abi.IDS: ids,
                abi.OFFSETS: nn.spec.Tensor(["num_offsets"], "int32"),
                **states("batch_size"),
            },
            abi.DECODE: {abi.IDS: nn.spec.Tensor([1], "int32"), **states(1)},
            abi.BATCH_DECODE: {
                abi.IDS: nn.spec.Tensor(["batch_size"], "int32"),
                **states("batch_size"),
            },
        }
        methods = {
            name: {
                **specs,
                "$": {
                    "param_mode": "none" if name == "create_rnn_state" else "packed",
                    "effect_mode": "none",
                },
            }
            for name, specs in arguments.items()
        }
        return nn.spec.ModuleSpec.from_raw(methods, self)
