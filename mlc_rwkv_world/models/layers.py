"""The layers that every version shares. Storage type and compute type are chosen apart."""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.models import operations as ops


class Linear(nn.Module):  # type: ignore[misc]
    """`x W^T` without bias; `weight` [out_features, in_features] in its storage type.

    Quantization replaces this layer by one that stores the weight in another way and overrides
    `dense_weight`.
    """

    def __init__(self, in_features: int, out_features: int, dtype: str) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter((out_features, in_features), dtype)

    def dense_weight(self, dtype: str) -> Tensor:
        """The weight [out_features, in_features] in the type that the product computes in."""
        return op.astype(self.weight, dtype)

    def forward(self, x: Tensor, out_dtype: str) -> Tensor:
        """x [T, in_features] of the compute type to [T, out_features] of `out_dtype`."""
        weight = self.dense_weight(x.dtype)
        return op.matmul(x, op.permute_dims(weight), out_dtype=out_dtype)


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

    def forward(self, x: Tensor) -> Tensor:
        """x [T, dim] of any type to float32 [T, dim]."""
        return op.layer_norm(
            op.astype(x, "float32"), self.weight.shape, self.weight, self.bias, self.eps
        )
