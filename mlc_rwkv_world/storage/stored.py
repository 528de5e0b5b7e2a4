"""How one matrix W [N, K] is stored: the only place that knows.

Plain, it is one tensor `weight` [N, K]. Otherwise its values are integers of a few bits in words:
`q_weight` uint32 [N, K / (32 / bits)], where value k of a row stands in word k // (32 / bits) at
bit k % (32 / bits) * bits, with `offset` added; and each group of neighbours in a row has one
scale in `q_scale` [N, K / group]. These are mlc_llm's `_1` layouts, where a group is 32 values.
"""

from __future__ import annotations

import dataclasses
import re

# Rows that lie side by side in every packed form.
ROWS = 32
# The packed forms, see `kernels.cpu.packed_weight`: rows side by side, pairs of bfloat16, and
# records of words and scales.
SIDE_BY_SIDE, PAIRS, RECORDS = "side", "pairs", "records"
_WORD = 32
_SIZES = {"float32": 4, "float16": 2}
_FORMS = ("", SIDE_BY_SIDE, PAIRS, RECORDS)
_TEXT = re.compile(r"(?:q(\d+)\+(\d+)/(\d+|row):)?(float32|float16)(?:@(\w+))?")
_WEIGHT, _WORDS, _SCALES = "weight", "q_weight", "q_scale"


def matrix_of(name: str) -> str:
    """The name of the weight behind a stored tensor; any other tensor's own name."""
    path, dot, tensor = name.rpartition(".")
    return path + dot + (_WEIGHT if tensor in (_WORDS, _SCALES) else tensor)


def _largest(bits: int) -> int:
    return (1 << (bits - 1)) - 1


class IndivisibleRow(ValueError):
    """A row of `inner` values does not divide into the `pieces` that it is to be stored in."""

    def __init__(self, inner: int, pieces: str) -> None:
        super().__init__(f"rows of {inner} values do not divide into {pieces}")
        self.inner = inner
        self.pieces = pieces


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One of the tensors that a matrix is stored in."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a matrix is stored: plain where `bits` is 0, else integers in groups with scales.

    `dtype` is the type of plain values, or of scales; `group` how many neighbours of a row share a
    scale, 0 where the whole row does; `offset` what is added to a value to store it. `form` is
    empty for what shards hold, or names a packed form.
    """

    bits: int
    dtype: str
    group: int = 0
    offset: int = 0
    form: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in _SIZES:
            raise ValueError(f"weights cannot be stored as {self.dtype}")
        if self.form not in _FORMS:
            raise ValueError(f"{self.form!r} is no packed form")
        if not self.bits:
            if self.group or self.offset:
                raise ValueError("plain weights have no groups and no offset")
            return
        if _WORD % self.bits or self.group % self.per_element:
            raise ValueError(f"{self.bits} bits in groups of {self.group} do not fill words")
        if not self.largest <= self.offset < (1 << self.bits) - self.largest:
            raise ValueError(f"offset {self.offset} moves values out of {self.bits} bits")

    @classmethod
    def symmetric(cls, bits: int, dtype: str, group: int) -> Stored:
        """With the least offset there can be, which is the largest value."""
        return cls(bits, dtype, group, _largest(bits))

    @property
    def largest(self) -> int:
        """The largest magnitude of an integer; there are as many below zero as above."""
        return _largest(self.bits)

    def packed(self, form: str) -> Stored:
        """The same values in a packed form."""
        return dataclasses.replace(self, form=form)

    @property
    def per_element(self) -> int:
        """How many values one element of the first tensor holds, before packing."""
        return _WORD // self.bits if self.bits else 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors, without that of the matrix."""
        return (_WORDS, _SCALES) if self.bits and not self.form else (_WEIGHT,)

    def group_size(self, inner: int) -> int:
        """How many values of a row of `inner` share a scale."""
        return self.group or inner

    def tensors(self, outer: int, inner: int) -> tuple[StoredTensor, ...]:
        """The tensors that a matrix [outer, inner] is stored in.

        Raises IndivisibleRow where a row of that length cannot be stored this way.
        """
        shapes = self._packed_shapes(outer, inner) if self.form else self._shapes(outer, inner)
        return tuple(
            StoredTensor(name, shape, dtype)
            for name, (shape, dtype) in zip(self.names, shapes, strict=True)
        )

    def _shapes(self, outer: int, inner: int) -> list[tuple[tuple[int, ...], str]]:
        if not self.bits:
            return [((outer, inner), self.dtype)]
        size = self.group_size(inner)
        if inner % size:
            raise IndivisibleRow(inner, f"groups of {size}")
        if inner % self.per_element:
            raise IndivisibleRow(inner, f"words of {self.per_element}")
        words = ((outer, inner // self.per_element), "uint32")
        return [words, ((outer, inner // size), self.dtype)]

    def _packed_shapes(self, outer: int, inner: int) -> list[tuple[tuple[int, ...], str]]:
        blocks = -(-outer // ROWS)
        if self.form == SIDE_BY_SIDE:
            return [((blocks, inner, ROWS), self.dtype)]
        if self.form == PAIRS and inner % 2:
            raise IndivisibleRow(inner, "pairs")
        if self.form == PAIRS:
            return [((blocks, inner // 2, 2 * ROWS), "uint16")]
        return [((blocks, inner // self.group, ROWS * self.bits + self.scale_words), "uint32")]

    @property
    def scale_words(self) -> int:
        """How many words the scales of one packed record take."""
        return ROWS * _SIZES[self.dtype] // 4

    def __str__(self) -> str:
        group = self.group or "row"
        integers = f"q{self.bits}+{self.offset}/{group}:" if self.bits else ""
        return f"{integers}{self.dtype}" + (f"@{self.form}" if self.form else "")

    @classmethod
    def parse(cls, text: str) -> Stored:
        """What `str` gave; ValueError for any other text."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} does not say how a weight is stored")
        bits, offset, group, dtype, form = found.groups()
        size = 0 if group in (None, "row") else int(group)
        return cls(int(bits or 0), dtype, size, int(offset or 0), form or "")
