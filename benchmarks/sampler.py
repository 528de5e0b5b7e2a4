"""The sampler beside one in numpy: microseconds for each sequence of a batch.

    python benchmarks/sampler.py

Logits [B, 65536] are normally distributed; the defaults of World models are used but for what a
row names, with a hundred tokens to penalize. Times are CPU time, so that other load on the machine
counts little; a figure is the median of many calls, in which the contestants take turns. The one in
numpy is what a straightforward program does, in float32: a softmax, a partition, a running sum.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.runtime.sampler import Sampler, Sampling, choose_all

VOCAB, USABLE = 65536, 65530
BATCHES = (1, 8, 32)
TAKEN = range(1000, 1100)
WAYS = {
    "defaults (top_p 0.3)": Sampling(),
    "top_p 0.9": Sampling(top_p=0.9),
    "top_p 1": Sampling(top_p=1.0),
    "top_k 40": Sampling(top_p=1.0, top_k=40),
    "min_p 0.05": Sampling(top_p=1.0, min_p=0.05),
    "temperature 0": Sampling(temperature=0.0),
}


def numpy_choice(
    logits: npt.NDArray[np.float32], sampling: Sampling, random: np.random.Generator
) -> int:
    """The next token, its penalties for TAKEN."""
    scores = logits[:USABLE].copy()
    scores[TAKEN] -= sampling.presence_penalty + sampling.frequency_penalty
    best = int(scores.argmax())
    if sampling.temperature == 0:
        return best
    scores -= scores[best]
    weights = np.exp(scores, out=scores)
    if sampling.top_k:
        weights[weights < np.partition(weights, -sampling.top_k)[-sampling.top_k]] = 0
    if sampling.top_p < 1:
        mass = sampling.top_p * weights.sum()
        # A sort of all takes ten times as long; nearly always these are enough.
        likely = weights[weights >= 1 / 512]
        falling = np.sort(likely if likely.sum() >= mass else weights)[::-1]
        weights[weights < falling[np.searchsorted(np.cumsum(falling), mass)]] = 0
    weights[weights < sampling.min_p] = 0
    sums = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(sums, random.random() * sums[-1], side="right"))


def contest(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of CPU time of each call."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            started = time.thread_time()
            call()
            taken.append(time.thread_time() - started)
    return [statistics.median(taken) for taken in times]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text("ascii").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {len(models)} processors"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--spread", type=float, default=3.0, help="of the logits")
    options = parser.parse_args()
    generator = np.random.default_rng(1)
    print(f"{machine()}, numpy {np.__version__}; logits N(0, {options.spread:g})\n")
    print("| us a sequence | " + " | ".join(f"batch {size}" for size in BATCHES) + " | numpy |")
    print("|---|" + "---:|" * (len(BATCHES) + 1))
    for name, sampling in WAYS.items():
        rows = generator.normal(0, options.spread, (max(BATCHES), VOCAB)).astype(np.float32)
        samplers = [Sampler(sampling, row, USABLE) for row in range(max(BATCHES))]
        for sampler in samplers:
            for token in TAKEN:
                sampler.take(token)
        calls: list[Callable[[], object]] = [
            partial(choose_all, samplers[:size], rows[:size]) for size in BATCHES
        ]
        calls.append(partial(numpy_choice, rows[0], sampling, generator))
        seconds = contest(calls, options.rounds)
        micros = [1e6 * taken / size for taken, size in zip(seconds, (*BATCHES, 1), strict=True)]
        print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in micros) + " |", flush=True)


if __name__ == "__main__":
    main()
