"""Layers whose weights are group-quantized, put in place of a model's plain ones."""

from __future__ import annotations

from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.models import operations as ops
from mlc_rwkv_world.models.layers import Embedding, Linear
from mlc_rwkv_world.quantization.formats import Format
from mlc_rwkv_world.quantization.group import GROUP_SIZE


def _parameters(rows: int, inner: int, fmt: Format) -> tuple[nn.Parameter, nn.Parameter]:
    if inner % GROUP_SIZE:
        raise UsageError(
            f"{fmt.name} stores rows in groups of {GROUP_SIZE}; rows of {inner} do not divide. "
            "Use q0f16 or q0f32."
        )
    words = nn.Parameter((rows, inner * fmt.bits // 32), "uint32")
    return words, nn.Parameter((rows, inner // GROUP_SIZE), fmt.dtype)


class GroupQuantizedLinear(Linear):
    """`Linear` with its weight in words and scales."""

    def __init__(self, plain: Linear, fmt: Format) -> None:
        nn.Module.__init__(self)
        self.in_features = plain.in_features
        self.out_features = plain.out_features
        self.q_weight, self.q_scale = _parameters(self.out_features, self.in_features, fmt)

    def stored(self) -> list[Tensor]:
        return [self.q_weight, self.q_scale]


class GroupQuantizedEmbedding(Embedding):
    """`Embedding` with its weight in words and scales."""

    def __init__(self, plain: Embedding, fmt: Format) -> None:
        nn.Module.__init__(self)
        self.num = plain.num
        self.dim = plain.dim
        self.q_weight, self.q_scale = _parameters(self.num, self.dim, fmt)

    def forward(self, ids: Tensor) -> Tensor:
        return ops.embedding_dequantize(self.q_weight, self.q_scale, ids, self.dim)


class _Quantizer(nn.Mutator):  # type: ignore[misc]
    def __init__(self, fmt: Format) -> None:
        super().__init__()
        self.format = fmt

    def visit_module(self, name: str, node: nn.Module) -> Any:
        if isinstance(node, Linear):
            return GroupQuantizedLinear(node, self.format)
        if isinstance(node, Embedding):
            return GroupQuantizedEmbedding(node, self.format)
        return self.visit(name, node)


def quantize_layers(model: nn.Module, fmt: Format) -> nn.Module:
    """Replaces every linear layer and embedding as the format stores them."""
    return _Quantizer(fmt).visit("", model) if fmt.bits else model
