"""The engine without a server, for serving.py: in a process that no server's threads disturb.

    python benchmarks/serving_alone.py dist/MODEL THREADS

For each line ["steps", SIZE, STEPS] it prints the tokens per second of that many steps of a batch,
as `bench` measures them; for ["chat", SAMPLING, TOKENS] those of one answer, as `chat` shows them:
each token is chosen too, by the options of `Sampling`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from mlc_rwkv_world.runtime import Engine, load
from mlc_rwkv_world.runtime.answer import Answer
from mlc_rwkv_world.runtime.generate import Generation


def steps(engine: Engine, size: int, count: int) -> float:
    """Tokens each second of steps that nothing is chosen between."""
    states = [engine.new_state() for _ in range(size)]
    tokens = list(range(1, size + 1))
    engine.decode_batch(tokens, states)
    started = time.perf_counter()
    for _ in range(count):
        engine.decode_batch(tokens, states)
    return size * count / (time.perf_counter() - started)


def chat(engine: Engine, options: dict[str, Any], count: int) -> float:
    """Tokens each second of an answer."""
    # JSON knows no numbers as names.
    options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
    answer = Answer(
        engine.tokenizer, engine.sampler(engine.sampling.changed(options)), max_tokens=count
    )
    generation = Generation(engine, engine.new_state(), answer)
    for _ in generation.run(np.array([1, 2, 3], np.int32)):
        pass
    return generation.speed.decode_tokens / generation.speed.decode_seconds


def main() -> None:
    """Answer lines until there are no more."""
    model, threads = sys.argv[1:]
    # Where torch is installed, TVM would load it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    engine = load(model, "cpu", threads=int(threads))
    for line in sys.stdin:
        what, given, count = json.loads(line)
        rate = steps(engine, given, count) if what == "steps" else chat(engine, given, count)
        print(rate, flush=True)


if __name__ == "__main__":
    main()
