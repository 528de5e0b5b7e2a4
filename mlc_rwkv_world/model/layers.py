"""The layers that every version shares. Storage and compute type are chosen apart."""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.model import operations as ops
from mlc_rwkv_world.model.shared_parts import layer_norm, linear
from mlc_rwkv_world.storage.stored import Stored, StoredTensor


class StoredParameter(nn.Parameter):  # type: ignore[misc]
    """One of the tensors in which a matrix is stored."""

    def __init__(self, tensor: StoredTensor, stored: Stored) -> None:
        super().__init__(tensor.shape, tensor.dtype)
        self.stored = stored


class Matrix(nn.Module):  # type: ignore[misc]
    """A weight [outer, inner], in parameters that lie and are named as `stored` says.

    Raises IndivisibleRow where such a row cannot be stored so.
    """

    def __init__(self, outer: int, inner: int, stored: Stored) -> None:
        super().__init__()
        self.shape = (outer, inner)
        self.stored = stored
        for tensor in stored.tensors(outer, inner):
            setattr(self, tensor.name, StoredParameter(tensor, stored))

    def tensors(self) -> list[Tensor]:
        """The parameters, in order."""
        return [getattr(self, name) for name in self.stored.names]


class Linear(Matrix):
    """`x W^T` without bias, W [out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int, stored: Stored) -> None:
        super().__init__(out_features, in_features, stored)

    def forward(self, x: Tensor, out_dtype: str) -> Tensor:
        """x [T, in_features] of the compute type to [T, out_features] of `out_dtype`."""
        return linear(x, self, out_dtype)


class Embedding(Matrix):
    """Rows of a weight [num, dim]."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids int32 [T] to float32 [T, dim]."""
        return ops.embedding(self.tensors(), self.stored, ids, self.shape[1])


class LayerNorm(nn.Module):  # type: ignore[misc]
    """Layer normalization over channels, in float32 whatever the type of its input."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter((dim,), "float32")
        self.bias = nn.Parameter((dim,), "float32")

    def tensors(self) -> list[Tensor]:
        """Weight and bias."""
        return [self.weight, self.bias]

    def forward(self, x: Tensor) -> Tensor:
        """x [T, dim] of any type to float32 [T, dim]."""
        return layer_norm(x, self.tensors(), self.eps)
