"""How a weight says that it lies: its tensors, its text, and what cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.storage import FORMATS, Stored, format_named
from mlc_rwkv_world.storage.groups import quantize
from mlc_rwkv_world.storage.stored import (
    PAIRS,
    RECORDS,
    SIDE_BY_SIDE,
    IndivisibleRow,
    StoredTensor,
    matrix_of,
)

Q4 = Stored.symmetric(4, "float16", group=32)
BY_ROW = Stored.symmetric(8, "float32", group=0)
TEXTS = {
    Stored(0, "float16"): "float16",
    Q4: "q4+7/32:float16",
    BY_ROW: "q8+127/row:float32",
    Stored(2, "float16", group=64, offset=2): "q2+2/64:float16",
    Q4.packed(RECORDS): "q4+7/32:float16@records",
    Stored(0, "float32").packed(PAIRS): "float32@pairs",
}


@pytest.mark.parametrize("stored", TEXTS, ids=str)
def test_text_says_all(stored: Stored) -> None:
    assert str(stored) == TEXTS[stored]
    assert Stored.parse(TEXTS[stored]) == stored


@pytest.mark.parametrize("text", ["", "int8", "q4:float16", "q4+7/32:float16@", "q4+7/32:int8"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not say how a weight is stored"):
        Stored.parse(text)


@pytest.mark.parametrize("bits, group", [(3, 32), (4, 12), (8, 2)])
def test_values_have_to_fill_words(bits: int, group: int) -> None:
    with pytest.raises(ValueError, match=f"{bits} bits in groups of {group} do not fill words"):
        Stored.symmetric(bits, "float16", group)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be stored as int8"):
        Stored(0, "int8")
    with pytest.raises(ValueError, match="no groups and no offset"):
        Stored(0, "float16", group=32)
    with pytest.raises(ValueError, match="'piled' is no packed form"):
        Q4.packed("piled")
    for offset in (6, 9):
        with pytest.raises(ValueError, match=f"offset {offset} moves values out of 4 bits"):
            Stored(4, "float16", 32, offset)


@pytest.mark.parametrize("stored", [stored for stored in TEXTS if not stored.form], ids=str)
def test_tensors_are_those_of_the_shards(stored: Stored) -> None:
    tensors = stored.tensors(5, 192)
    values = quantize(np.ones((5, 192), np.float32), stored)
    assert [(t.shape, t.dtype) for t in tensors] == [(v.shape, str(v.dtype)) for v in values]
    assert tuple(tensor.name for tensor in tensors) == stored.names
    assert {matrix_of(f"head.{name}") for name in stored.names} == {"head.weight"}


def test_names_of_what_is_no_matrix_stay() -> None:
    assert matrix_of("blocks.0.ln1.bias") == "blocks.0.ln1.bias"
    assert matrix_of("time_decay") == "time_decay"


def test_packed_forms() -> None:
    plain = Stored(0, "float16")
    assert plain.packed(SIDE_BY_SIDE).tensors(33, 64) == (
        StoredTensor("weight", (2, 64, 32), "float16"),
    )
    assert plain.packed(PAIRS).tensors(33, 64) == (StoredTensor("weight", (2, 32, 64), "uint16"),)
    # 32 rows of 4 words with 8 values each, and their scales, two in a word.
    assert Q4.packed(RECORDS).tensors(33, 64) == (
        StoredTensor("weight", (2, 2, 4 * 32 + 16), "uint32"),
    )


def test_rows_that_do_not_divide_are_refused() -> None:
    for stored, pieces in ((Q4, "groups of 32"), (BY_ROW, "words of 4")):
        with pytest.raises(IndivisibleRow, match=f"rows of 49 values do not divide into {pieces}"):
            stored.tensors(2, 49)
    with pytest.raises(IndivisibleRow, match="rows of 49 values do not divide into pairs"):
        Stored(0, "float32").packed(PAIRS).tensors(2, 49)


def test_formats() -> None:
    for name, fmt in FORMATS.items():
        assert format_named(name) is fmt
        assert name.startswith(f"q{fmt.matrix.bits}f{fmt.dtype.removeprefix('float')}")
        assert fmt.matrix.dtype == fmt.dtype
        assert fmt.rescales == (fmt.dtype == "float16")
    with pytest.raises(UsageError, match=r"'q3f16_1' is not known; choose one of q0f32, .*q8f16_1"):
        format_named("q3f16_1")
