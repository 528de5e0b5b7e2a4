"""The sampler against a plain reference, and its ranges, seeds, history and speed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sampling_reference import Reference, uniform

from mlc_rwkv_world.errors import ArtifactError, StateError, UsageError
from mlc_rwkv_world.runtime.sampler import Sampler, Sampling, choose_all, score

USABLE = 65530
PLAIN: dict[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0}

Logits = npt.NDArray[np.float32]


def random_logits(seed: int, spread: float = 3.0, size: int = 65536) -> Logits:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def nucleus(logits: Logits, temperature: float, top_p: float) -> npt.NDArray[np.float64]:
    """The distribution by the book: softmax, a full sort, what is left over put to zero."""
    scores = logits[:USABLE].astype(np.float64) / temperature
    probabilities: npt.NDArray[np.float64] = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    falling = np.sort(probabilities)[::-1]
    bound = falling[np.argmax(np.cumsum(falling) >= top_p)] if top_p < 1 else 0
    probabilities[probabilities < bound] = 0
    probabilities /= probabilities.sum()
    return probabilities


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
        {"random": np.zeros((1, 2), np.uint64)},
        {"penalty_ids": np.array([3, 3], np.int32), "penalty_weights": np.ones(2)},
        {"penalty_ids": np.array([3], np.int32), "penalty_weights": np.full(1, math.nan)},
        {"penalty_ids": np.array([3.0]), "penalty_weights": np.ones(1)},
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
        ("min_p", 1.1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is {value}"):
        Sampling().changed({name: value})


@pytest.mark.parametrize(
    ("bias", "message"),
    [({-1: 1.0}, "-1"), ({"a": 1.0}, "'a'"), ({3: 101.0}, "of 3 is 101"), ({3: "x"}, "of 3 is x")],
)
def test_bad_biases_are_refused(bias: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"logit_bias.*{message}"):
        Sampling(logit_bias=bias)


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


WAYS = {
    "defaults": Sampling(),
    "wide": Sampling(temperature=1.3, top_p=0.95),
    "all": Sampling(top_p=1.0),
    "top_k": Sampling(top_p=1.0, top_k=40),
    "top_k and top_p": Sampling(top_p=0.8, top_k=500),
    "more than there are": Sampling(top_p=1.0, top_k=100_000),
    "min_p": Sampling(top_p=1.0, min_p=0.05),
    "everything": Sampling(
        temperature=0.7,
        top_p=0.9,
        top_k=1000,
        min_p=0.001,
        presence_penalty=-0.5,
        frequency_penalty=1.0,
        repetition_penalty=1.2,
        penalty_decay=0.9,
        logit_bias={5: 12.0, 6: -100.0, 65529: 3.5},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spread", [0.01, 3.0, 12.0])
def test_choices_are_those_of_the_reference(way: str, spread: float) -> None:
    """Given the same random number, which numpy draws for it."""
    sampler = Sampler(WAYS[way], 11, USABLE)
    reference = Reference(WAYS[way], 11, USABLE)
    for step in range(6):
        logits = random_logits(step, spread)
        token = sampler.choose(logits)
        assert reference.chooses(token, logits)
        for one in (sampler, reference):
            # What is taken need not be what was chosen.
            one.take(token if step % 2 else 5)


def test_random_numbers_are_those_of_philox() -> None:
    logits = np.zeros(4096, np.float32)
    sampler = Sampler(Sampling(top_p=1.0, **PLAIN), 1 << 63, 4096)
    for taken in range(20):
        assert sampler.sample(logits) == int(uniform(1 << 63, taken) * 4096)


def mask_of(ids: list[int]) -> npt.NDArray[np.uint32]:
    mask = np.zeros(2048, np.uint32)
    for one in ids:
        mask[one // 32] |= np.uint32(1 << one % 32)
    return mask


@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_masks_allow_tokens(dtype: Any) -> None:
    ids = [0, 31, 32, 40000, 65529]
    mask = mask_of(ids).view(dtype)
    for temperature, least in ((0.0, 1), (1.0, 2), (100.0, 4)):
        sampler = Sampler(Sampling(temperature, 1.0, **PLAIN), 2, USABLE)
        reference = Reference(sampler.sampling, 2, USABLE)
        chosen = set()
        for step in range(60):
            logits = random_logits(step % 7)
            token = sampler.choose(logits, mask)
            if temperature:
                assert reference.chooses(token, logits, mask.view(np.uint32))
            for one in (sampler, reference):
                one.take(token)
            chosen.add(token)
        assert chosen <= set(ids)
        assert len(chosen) >= least


def test_masks_that_leave_nothing_or_do_not_fit() -> None:
    sampler = Sampler(Sampling(), 1, USABLE)
    logits = random_logits(1)
    for mask in (mask_of([]), mask_of([65530])):
        with pytest.raises(UsageError, match="leaves no token"):
            sampler.choose(logits, mask)
    logits[7] = -np.inf
    with pytest.raises(UsageError, match="leaves no token"):
        sampler.choose(logits, mask_of([7]))
    for wrong in (np.ones(65536, bool), np.ones(2047, np.uint32), np.ones((2, 2048), np.uint32)):
        with pytest.raises(UsageError, match="2048 words of uint32"):
            sampler.choose(logits, wrong)


def test_choosing_changes_nothing() -> None:
    sampler = Sampler(Sampling(top_p=0.9), 4, USABLE)
    logits = random_logits(8)
    before = sampler.arrays()
    assert len({sampler.choose(logits) for _ in range(5)}) == 1
    for name, array in sampler.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_choices_do_not_depend_on_company() -> None:
    def samplers() -> list[Sampler]:
        made = [Sampler(WAYS[way], seed, USABLE) for seed, way in enumerate(WAYS)]
        for one in made:
            one.take(7)
        return made

    logits = np.stack([random_logits(row) for row in range(len(WAYS))])
    alone = [one.choose(row) for one, row in zip(samplers(), logits, strict=True)]
    together = samplers()
    assert choose_all(together, logits) == alone
    for start, end in ((0, 1), (2, 5), (1, 8)):
        assert choose_all(together[start:end], logits[start:end]) == alone[start:end]
    backwards = choose_all(together[::-1], logits[::-1], [None] * len(WAYS))
    assert backwards == alone[::-1]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_choices_do_not_depend_on_threads(count: int) -> None:
    """In a process of its own, since a pool's size is set once; a fault stays that of one row."""
    script = f"""
import numpy as np
from mlc_rwkv_world.errors import ArtifactError
from mlc_rwkv_world.runtime import threads
from mlc_rwkv_world.runtime.sampler import Sampler, Sampling, choose_all
assert threads.use({count}) == {count}
logits = np.random.default_rng(1).normal(0, 3, (13, 65536)).astype(np.float32)
logits[5, 7] = np.nan
samplers = [Sampler(Sampling(1, 0.3 + 0.05 * row), row, {USABLE}) for row in range(13)]
alone = choose_all(samplers, logits)
assert isinstance(alone.pop(5), ArtifactError) and len(set(alone)) > 5
for rows in range(1, 14):
    shared = choose_all(samplers[:rows], logits[:rows], (), threads.launcher())
    if rows > 5:
        assert isinstance(shared.pop(5), ArtifactError)
    assert shared == alone[: len(shared)]
"""
    environment = {**os.environ, "TVM_NUM_THREADS": str(count)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_a_fault_in_a_batch_is_of_one_sequence() -> None:
    logits = np.stack([random_logits(row) for row in range(4)])
    logits[1, 5] = math.nan
    samplers = [Sampler(Sampling(), row, USABLE) for row in range(4)]
    first, second, third, fourth = choose_all(samplers, logits, [None, None, mask_of([]), None])
    assert first == samplers[0].choose(logits[0])
    assert isinstance(second, ArtifactError) and "not a number" in str(second)
    assert isinstance(third, UsageError) and "leaves no token" in str(third)
    assert fourth == samplers[3].choose(logits[3])


def test_logits_that_do_not_fit() -> None:
    sampler = Sampler(Sampling(), 1, USABLE)
    with pytest.raises(UsageError, match="65530 tokens"):
        sampler.choose(random_logits(1, size=65529))
    with pytest.raises(UsageError, match="row for each of 2 samplers"):
        choose_all([sampler, sampler], random_logits(1)[None])
    with pytest.raises(UsageError, match="token id 65530 is not in"):
        sampler.take(65530)
    with pytest.raises(UsageError, match="token id 70000 is not in"):
        Sampler(Sampling(logit_bias={70000: 1.0}), 1, USABLE)


def test_scores_are_log_probabilities_of_the_model() -> None:
    logits = np.stack([random_logits(row, spread) for row, spread in enumerate((0.1, 3.0, 20.0))])
    logits[2, 9] = -np.inf
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64)
    expected = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    scores = score([3, 65535, 9], logits, [0, 5, 20], USABLE)
    for row, (token, count) in enumerate(((3, 0), (65535, 5), (9, 20))):
        assert scores[row].log_probability == pytest.approx(expected[row, token], abs=1e-6)
        likely = np.argsort(-expected[row, :USABLE], kind="stable")[:count]
        assert [one for one, _ in scores[row].top] == likely.tolist()
        np.testing.assert_allclose(
            [value for _, value in scores[row].top], expected[row, likely], atol=1e-6
        )
    assert scores[2].log_probability == -math.inf
    # A token has the same number beside the choice and among the likeliest.
    best, value = scores[1].top[0]
    assert score([best], logits[1:2], [0], USABLE)[0].log_probability == value
    logits[1, 0] = math.nan
    with pytest.raises(ArtifactError, match="not a number"):
        score([3, 3, 3], logits, [0, 0, 0], USABLE)


@pytest.mark.parametrize("call", ["choose", "choose_all", "score"])
def test_other_threads_run_meanwhile(call: str) -> None:
    """This thread gives up the interpreter only where the call does so."""
    sampler = Sampler(Sampling(), 1, USABLE)
    rows = np.stack([random_logits(row) for row in range(8)])
    calls: dict[str, Callable[[], object]] = {
        "choose": lambda: sampler.choose(rows[0]),
        "choose_all": lambda: choose_all([sampler] * 8, rows),
        "score": lambda: score(range(8), rows, [0] * 8, USABLE),
    }
    gate, ran = threading.Lock(), []

    def run() -> None:
        gate.acquire()
        ran.append(True)

    gate.acquire()
    other = threading.Thread(target=run)
    other.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        gate.release()
        tries = 0
        while not ran and tries < 10_000:
            calls[call]()
            tries += 1
        assert ran
    finally:
        sys.setswitchinterval(interval)
        other.join()


def test_files_of_before_are_read() -> None:
    """Which held the words of Python's generator: what follows them is the same each time."""
    older = {
        "penalty_ids": np.array([5, 6], np.int32),
        "penalty_weights": np.array([1.0, 0.5]),
        "random": np.array([*range(1, 625), 624], np.uint32),
    }

    def run() -> list[int]:
        sampler = Sampler(Sampling(top_p=0.9), None, USABLE)
        sampler.restore(older)
        np.testing.assert_array_equal(sampler.arrays()["penalty_ids"], older["penalty_ids"])
        return [sampler.sample(random_logits(i)) for i in range(10)]

    assert run() == run()


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
