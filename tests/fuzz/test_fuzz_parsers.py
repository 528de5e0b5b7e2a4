"""A short run of every fuzz target: its seeds cut anywhere and with flipped bits, and mutations."""

from __future__ import annotations

import random

import pytest
from fuzz_targets import TARGETS, Target
from mutation import mutations

CUTS = 200
FLIPS = 500
MUTATIONS = 400


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_nothing_but_results_and_named_errors(target: Target) -> None:
    seeds = target.seeds
    assert sum(target.run(seed) for seed in seeds) > 0
    for seed in seeds:
        for length in range(0, len(seed), 1 + len(seed) // CUTS):
            target.run(seed[:length])
    rng = random.Random(0)
    for _ in range(FLIPS):
        data = bytearray(rng.choice(seeds))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        target.run(bytes(data))
    outcomes = [target.run(data) for data in mutations(seeds, MUTATIONS)]
    # Neither everything nor nothing of what the mutations make is refused.
    assert not all(outcomes)


def test_mutations_repeat() -> None:
    seeds = TARGETS["checkpoint-torch"].seeds
    first, again, other = (list(mutations(seeds, 50, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) > 40
