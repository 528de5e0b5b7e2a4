"""What makes a build id, and what two tables have in common."""

from __future__ import annotations

from typing import Any

import pytest

from mlc_rwkv_world.artifact.identity import Row, make_build_id, table_digest

TABLE: list[Row] = [("a", (2, 3), "float32"), ("b", (4,), "uint32")]
MEANING = {"quantization": "q4f16_1", "rescale_every": 6}


def test_the_order_of_rows_does_not_matter() -> None:
    assert table_digest(TABLE) == table_digest(TABLE[::-1])
    assert make_build_id(TABLE, MEANING) == make_build_id(iter(TABLE[::-1]), MEANING)


@pytest.mark.parametrize(
    "row", [("c", (4,), "uint32"), ("b", (5,), "uint32"), ("b", (4,), "int32"), ("b", (), "uint32")]
)
def test_every_part_of_a_row_counts(row: Row) -> None:
    assert table_digest([TABLE[0], row]) != table_digest(TABLE)


@pytest.mark.parametrize(
    "meaning", [{}, MEANING | {"rescale_every": 0}, MEANING | {"quantization": "q4f32_1"}]
)
def test_the_meaning_counts(meaning: dict[str, Any]) -> None:
    assert make_build_id(TABLE, meaning) != make_build_id(TABLE, MEANING)
