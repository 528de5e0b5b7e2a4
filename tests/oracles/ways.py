"""Reads one text in many random ways, and says where logits or a state differ from those of steps.

A program of its own, since the number of TVM's threads is the process's:

    python tests/oracles/ways.py ARTIFACT --ways 200

prints the first difference as JSON, with the seed of its group, or `null`. A group of sequences
read the same tokens together, in pieces and steps of their own, some beside strangers.
`--first SEED --ways 1` runs a group again.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

THREADS, TOKENS, COMPANY = 3, 300, 8
os.environ["TVM_NUM_THREADS"] = str(THREADS)

from mlc_rwkv_world.cli.start import start_light  # noqa: E402

# Without PyTorch, which would take as long as all that is read.
start_light()

import numpy as np  # noqa: E402

from mlc_rwkv_world.runtime import Engine, State, load  # noqa: E402
from mlc_rwkv_world.runtime.threads import use  # noqa: E402


class Expected:
    """Logits and state after each token of a text, read step by step on one thread."""

    def __init__(self, engine: Engine) -> None:
        use(1)
        self.ids = np.random.default_rng(300).integers(1, 65530, TOKENS)
        state = engine.new_state()
        self.logits, self.states = [], []
        for token in self.ids:
            self.logits.append(engine.decode(int(token), state).copy())
            self.states.append(state.numpy())

    def difference(self, read: int, logits: np.ndarray, state: State) -> dict[str, Any] | None:
        """What differs after so many tokens, if anything does."""
        for name, found, wanted in (
            ("logits", logits, self.logits[read - 1]),
            ("state", state.numpy(), self.states[read - 1]),
        ):
            if found.tobytes() != wanted.tobytes():
                return {"of": name, "after": read, "by": float(np.abs(found - wanted).max())}
        return None


def group(engine: Engine, expected: Expected, seed: int) -> tuple[int, dict[str, Any] | None]:
    """How many sequences read the text in the ways of this seed, and what differed first."""
    random = np.random.default_rng(seed)
    threads = use(1 + seed % THREADS)
    count = int(random.integers(1, COMPANY + 1))
    states, read = [engine.new_state() for _ in range(count)], [0] * count
    stranger = engine.new_state()
    while min(read) < TOKENS:
        left = [one for one in range(count) if read[one] < TOKENS]
        chosen = [int(one) for one in random.permutation(left)[: random.integers(1, len(left) + 1)]]
        scale = random.choice([0, 1, 4, 20, 100])
        lengths = [min(TOKENS - read[one], 1 + int(random.exponential(scale))) for one in chosen]
        pieces = [
            expected.ids[read[one] : read[one] + length]
            for one, length in zip(chosen, lengths, strict=True)
        ]
        given = [states[one] for one in chosen]
        if random.random() < 0.3:
            pieces.append(random.integers(1, 65530, 1 if scale == 0 else random.integers(1, 9)))
            given.append(stranger)
        if scale == 0:
            tokens = np.concatenate(pieces)
            logits = engine.decode_batch(tokens, given)
        else:
            logits = engine.prefill_batch(pieces, given)
        for one, length, row in zip(chosen, lengths, logits, strict=False):
            read[one] += length
            found = expected.difference(read[one], row, states[one])
            if found is not None:
                company = [len(piece) for piece in pieces]
                return count, {"seed": seed, "threads": threads, "lengths": company, **found}
    return count, None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--ways", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first group")
    options = parser.parse_args()
    engine = load(options.artifact, "cpu", threads=THREADS)
    expected = Expected(engine)
    found, done, seed = None, 0, options.first
    while found is None and done < options.ways:
        count, found = group(engine, expected, seed)
        done, seed = done + count, seed + 1
    print(json.dumps(found))


if __name__ == "__main__":
    main()
