"""A language model's exported functions, as `artifact.abi` describes them.

They take token ids, a pool of states [S, L, R, D] that they update in place, and the slots int32
[B, 2] that each sequence reads and writes. A host that calls other functions extends the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact import abi
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fields import Field, initial_rows
from mlc_rwkv_world.model.layers import Linear
from mlc_rwkv_world.model.segments import Ragged, Segments, Steps
from mlc_rwkv_world.model.state import Pool, State
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.storage.stored import IndivisibleRow

# How a function takes the parameters: as one tuple.
_PACKED = {"param_mode": "packed", "effect_mode": "none"}


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

    def logits(self, x: Tensor, segments: Segments, state: State) -> Tensor:
        """The residual [T, D] to float32 logits [B, V] after each sequence's last token."""
        return self.head(self.model(x, segments, state), out_dtype="float32")

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
        logits = self.logits(self.model.embed(ids), segments, state)
        return logits, state.tensor

    def functions(self) -> dict[str, dict[str, Any]]:
        """The exported functions and the types of their arguments."""
        ids = nn.spec.Tensor(["seq_len"], "int32")

        def states(batch: int | str) -> dict[str, nn.spec.Tensor]:
            layers, size = self.config.num_hidden_layers, self.config.hidden_size
            shape = ["num_slots", layers, len(initial_rows(self.fields)), size]
            return {
                abi.SLOTS: nn.spec.Tensor([batch, 2], "int32"),
                abi.POOL: nn.spec.Tensor(shape, "float32"),
            }

        return {
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

    def get_default_spec(self) -> nn.spec.ModuleSpec:
        """The functions as TVM exports them, their parameters packed unless they say otherwise."""
        methods = {name: {"$": _PACKED, **args} for name, args in self.functions().items()}
        return nn.spec.ModuleSpec.from_raw(methods, self)
