"""A cache of states finds the longest beginning, and keeps what is worth most."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from mlc_rwkv_world.serving.cache import Ids, StateCache, common

SIZE = 16


def ids(*values: int) -> Ids:
    return np.array(values, np.int32)


def content(value: float) -> np.ndarray:
    return np.full(SIZE // 4, value, np.float32)


def sequences(chance: random.Random) -> list[list[int]]:
    """Some sequences of few ids, many of which begin alike."""
    count = chance.randint(1, 30)
    return [chance.choices(range(3), k=chance.randint(1, 7)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(100))
def test_it_finds_what_a_table_of_all_beginnings_would(seed: int) -> None:
    chance = random.Random(seed)
    put, asked = sequences(chance), sequences(chance)
    cache = StateCache(1 << 20)
    table: dict[tuple[int, ...], int] = {}
    for number, one in enumerate(put):
        cache.put(ids(*one), content(number))
        table.setdefault(tuple(one), number)
    assert len(cache) == len(table) and cache.bytes == SIZE * len(table)
    for one in [*asked, *put]:
        lengths = [n for n in range(1, len(one)) if tuple(one[:n]) in table]
        length, found = cache.find(ids(*one))
        assert length == max(lengths, default=0) == cache.reach(ids(*one))
        assert (found is None) == (not lengths)
        if found is not None:
            assert found[0] == table[tuple(one[:length])]
        assert cache.holds(ids(*one)) == (tuple(one) in table)


@pytest.mark.parametrize("seed", range(100))
def test_it_keeps_within_its_budget_and_finds_what_it_has(seed: int) -> None:
    chance = random.Random(seed)
    put = sequences(chance)
    cache = StateCache(chance.randint(1, 8) * SIZE)
    for number, one in enumerate(put):
        cache.put(ids(*one), content(number))
        assert cache.bytes == SIZE * len(cache) <= cache.budget
        assert cache.holds(ids(*one))
    held = [one for one in put if cache.holds(ids(*one))]
    assert len({tuple(one) for one in held}) == len(cache)
    for one in held:
        assert cache.find(ids(*one, 9))[0] == len(one)


def test_the_middle_of_a_path_thins_out() -> None:
    cache = StateCache(10 * SIZE)
    path = np.arange(4000, dtype=np.int32)
    places = range(256, 4000, 256)
    for place in places:
        cache.put(path[:place], content(place))
    kept = [place for place in places if cache.holds(path[:place])]
    assert kept[0] == places[0] and kept[-1] == places[-1]
    # What lies between is spread out, not one end of it.
    assert max(np.diff(kept)) <= 4 * 256


@pytest.mark.parametrize("seed", range(20))
def test_what_is_worth_least_goes_first(seed: int) -> None:
    """Of all that is held, and without a look at all for each that goes."""
    looks = 0
    comparing = False
    newest: Any = None

    class Watched(StateCache):
        def _worth(self, node: Any) -> float:
            nonlocal looks
            looks += not comparing
            return super()._worth(node)

        def _release(self, node: Any) -> None:
            nonlocal comparing
            comparing = True
            others = self._held - {newest}
            assert self._worth(node) == min(map(self._worth, others))
            comparing = False
            super()._release(node)

        def _thin(self, keep: Any) -> None:
            nonlocal newest, looks
            newest, looks = keep, 0
            held = len(self)
            super()._thin(keep)
            assert held - len(self) > 3 and looks < 4 * held

    chance = random.Random(seed)
    cache = Watched(60 * SIZE)
    paths = [chance.choices(range(50), k=200) for _ in range(4)]
    for _ in range(300):
        cache.put(ids(*chance.choice(paths)[: chance.randint(1, 200)]), content(0))
        cache.find(ids(*chance.choice(paths)))
    assert newest is not None


def test_what_is_used_stays() -> None:
    cache = StateCache(8 * SIZE)
    cache.put(ids(1, 2, 3), content(0))
    for number in range(100):
        cache.put(ids(7, number), content(number))
        assert cache.find(ids(1, 2, 3, 4))[0] == 3


def test_a_content_larger_than_all_of_it_is_not_kept() -> None:
    cache = StateCache(SIZE - 1)
    cache.put(ids(1), content(0))
    assert (len(cache), cache.bytes) == (0, 0)


def test_origins_have_nothing_in_common() -> None:
    cache = StateCache(1 << 20)
    cache.put(ids(1, 2), content(1), "a")
    cache.put(ids(1, 2), content(2))
    assert cache.find(ids(1, 2, 3), "b") == (0, None)
    found = cache.find(ids(1, 2, 3), "a")[1]
    assert found is not None and found[0] == 1
    cache.forget("a")
    assert cache.find(ids(1, 2, 3), "a") == (0, None)
    assert (len(cache), cache.bytes) == (1, SIZE)


def test_common_counts_equal_ids() -> None:
    assert [common(ids(1, 2), ids(*other)) for other in ((), (1,), (1, 3), (1, 2, 3))] == [
        0,
        1,
        1,
        2,
    ]
