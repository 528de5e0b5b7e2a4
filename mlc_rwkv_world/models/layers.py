"""The layers that every version shares. Storage type and compute type are chosen apart."""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.models import operations as ops
from mlc_rwkv_world.models.shared_parts import layer_norm, linear


class Linear(nn.Module):  # type: ignore[misc]
    """`x W^T` without bias; `weight` [out_features, in_features] in its storage type.

    Quantization replaces this layer by one that stores the weight in another way.
    """

    def __init__(self, in_features: int, out_features: int, dtype: str) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter((out_features, in_features), dtype)

    def stored(self) -> list[Tensor]:
        """The tensors in which the weight is stored."""
        return [self.weight]

    def forward(self, x: Tensor, out_dtype: str) -> Tensor:
        """x [T, in_features] of the compute type to [T, out_features] of `out_dtype`."""
        return linear(x, self.stored(), self.out_features, out_dtype, block=None)


class Embedding(nn.Module):  # type: ignore[misc]
    """Rows of `weight` [num, dim]; quantization replaces it as it does `Linear`."""

    def __init__(self, num: int, dim: int, dtype: str) -> None:
        super().__init__()
        self.num = num
        self.dim = dim
        self.weight = nn.Parameter((num, dim), dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """ids int32 [T] to float32 [T, dim]."""
        return ops.embedding(self.weight, ids)


class LayerNorm(nn.Module):  # type: ignore[misc]
    """Layer normalization over channels, in float32 whatever the type of its input."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter((dim,), "float32")
        self.bias = nn.Parameter((dim,), "float32")

    def stored(self) -> list[Tensor]:
        """Weight and bias."""
        return [self.weight, self.bias]

    def forward(self, x: Tensor) -> Tensor:
        """x [T, dim] of any type to float32 [T, dim]."""
        return layer_norm(x, self.stored(), self.eps)
