"""The sampler against a plain reference, and its ranges, seeds, history and speed."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlc_rwkv_world.errors import ArtifactError, StateError, UsageError
from mlc_rwkv_world.runtime.sampler import Sampler, Sampling

USABLE = 65530
PLAIN = {"presence_penalty": 0.0, "frequency_penalty": 0.0}

Logits = npt.NDArray[np.float32]


def random_logits(seed: int, spread: float = 3.0, size: int = 65536) -> Logits:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def nucleus(logits: Logits, temperature: float, top_p: float) -> npt.NDArray[np.float64]:
    """The distribution by the book: softmax, a full sort, what is left over put to zero."""
    scores = logits[:USABLE].astype(np.float64) / temperature
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    falling = np.sort(probabilities)[::-1]
    bound = falling[np.argmax(np.cumsum(falling) >= top_p)] if top_p < 1 else 0
    probabilities[probabilities < bound] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("spread", [0.01, 2.0, 6.0])
def test_only_tokens_of_the_nucleus_are_chosen(
    temperature: float, top_p: float, spread: float
) -> None:
    logits = random_logits(1, spread)
    allowed = nucleus(logits, temperature, top_p) > 0
    sampler = Sampler(Sampling(temperature, top_p, **PLAIN), 0, USABLE)
    chosen = {sampler.sample(logits) for _ in range(50)}
    assert allowed[list(chosen)].all()


@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_frequencies_follow_the_distribution(top_p: float) -> None:
    logits = np.full(65536, -50, np.float32)
    logits[[7, 300, 65529]] = np.log([0.5, 0.3, 0.2])
    expected = nucleus(logits, 1.0, top_p)
    sampler = Sampler(Sampling(1.0, top_p, **PLAIN), 5, USABLE)
    count = 3000
    chosen = np.bincount([sampler.sample(logits) for _ in range(count)], minlength=USABLE)
    error = np.abs(chosen / count - expected).max()
    assert error < 4 * math.sqrt(0.25 / count)


def test_zero_temperature_and_zero_top_p_take_the_best() -> None:
    logits = random_logits(2)
    best = int(logits[:USABLE].argmax())
    for sampling in (Sampling(temperature=0, **PLAIN), Sampling(top_p=0, **PLAIN)):
        sampler = Sampler(sampling, None, USABLE)
        assert {sampler.sample(logits) for _ in range(5)} == {best}


def test_unused_ids_are_never_chosen() -> None:
    logits = random_logits(3)
    logits[USABLE:] = 100
    for temperature in (0.0, 1.0, 100.0):
        sampler = Sampler(Sampling(temperature, top_p=1.0), 0, USABLE)
        assert max(sampler.sample(logits) for _ in range(20)) < USABLE


def test_logits_are_left_alone() -> None:
    logits = random_logits(4)
    copy = logits.copy()
    logits.flags.writeable = False
    sampler = Sampler(Sampling(), 0, USABLE)
    for _ in range(3):
        sampler.sample(logits)
    np.testing.assert_array_equal(logits, copy)


def test_penalties_are_those_of_the_world_demos() -> None:
    """Each step's greedy choice against occurrences that a dictionary counts."""
    sampling = Sampling(
        temperature=0, presence_penalty=0.4, frequency_penalty=0.7, penalty_decay=0.9
    )
    sampler = Sampler(sampling, None, 40)
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.5, 40).astype(np.float32)
    occurrence: dict[int, float] = {}
    for _ in range(60):
        expected = base.astype(np.float64)
        for token, weight in occurrence.items():
            expected[token] -= 0.4 + 0.7 * weight
        token = sampler.sample(base)
        assert token == int(expected.argmax())
        occurrence = {key: weight * 0.9 for key, weight in occurrence.items()}
        occurrence[token] = occurrence.get(token, 0) + 1
    assert len(occurrence) > 5


def test_repetition_penalty_pushes_both_signs_down() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0, **PLAIN), None, 3)
    assert sampler.sample(np.array([3, 2, 1], np.float32)) == 0
    assert sampler.sample(np.array([3, 2, 1], np.float32)) == 1
    sampler.forget()
    assert sampler.sample(np.array([-1, -1.5, -9], np.float32)) == 0
    assert sampler.sample(np.array([-1, -1.5, -9], np.float32)) == 1


def test_history_stays_short_in_a_long_answer() -> None:
    sampler = Sampler(Sampling(temperature=0, penalty_decay=0.9), None, 1000)
    logits = np.zeros(1000, np.float32)
    for best in range(1000):
        logits[:] = 0
        logits[best] = 9
        assert sampler.sample(logits) == best
    assert len(sampler.arrays()["penalty_ids"]) < 100


def test_seeds_repeat_and_differ() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(top_p=0.9), seed, USABLE)
        return [sampler.sample(random_logits(i)) for i in range(10)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) != run(None)


def test_arrays_restore_history_and_random_numbers() -> None:
    first = Sampler(Sampling(top_p=0.9), 1, USABLE)
    for i in range(5):
        first.sample(random_logits(i))
    arrays = first.arrays()
    second = Sampler(Sampling(top_p=0.9), 99, USABLE)
    second.restore(arrays)
    again = [second.sample(random_logits(i)) for i in range(5, 15)]
    assert [first.sample(random_logits(i)) for i in range(5, 15)] == again


@pytest.mark.parametrize(
    "change",
    [
        {"penalty_ids": np.array([70000], np.int32), "penalty_weights": np.ones(1)},
        {"penalty_weights": np.ones(3)},
        {"random": np.zeros(3, np.uint32)},
        {"random": np.full(625, 4e9, np.uint32)},
    ],
)
def test_damaged_arrays_are_refused(change: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(), 1, USABLE)
    with pytest.raises(StateError, match="damaged"):
        sampler.restore(sampler.arrays() | change)
    with pytest.raises(StateError, match="damaged"):
        sampler.restore({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("penalty_decay", 1.1),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is {value}"):
        Sampling().changed({name: value})


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5])
def test_bad_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(UsageError, match="seed"):
        Sampler(Sampling(), seed, USABLE)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_output_that_is_no_number_is_an_error(value: float, temperature: float) -> None:
    logits = random_logits(5)
    logits[1234] = value
    with pytest.raises(ArtifactError, match="not a number"):
        Sampler(Sampling(temperature), 0, USABLE).sample(logits)


def test_minus_infinity_is_a_token_that_never_comes() -> None:
    logits = np.full(65536, -np.inf, np.float32)
    logits[17] = 0
    sampler = Sampler(Sampling(top_p=1.0), 0, USABLE)
    assert {sampler.sample(logits) for _ in range(5)} == {17}


@pytest.mark.parametrize(("spread", "limit"), [(3.0, 1e-3), (0.01, 3e-3)])
def test_sampling_costs_little(spread: float, limit: float) -> None:
    """A bound with room for a busy machine: on a quiet one it is a third of this."""
    logits = random_logits(6, spread)
    sampler = Sampler(Sampling(), 0, USABLE)
    best = math.inf
    for _ in range(30):
        started = time.thread_time()
        for _ in range(10):
            sampler.sample(logits)
        best = min(best, (time.thread_time() - started) / 10)
    assert best < limit, f"{best * 1e3:.2f} ms"
