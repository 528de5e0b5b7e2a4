"""Measure how fast a model reads and answers."""

from __future__ import annotations

import time

import numpy as np

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.generate import Speed


def evaluate(engine: Engine, prompt_tokens: int, generated_tokens: int, seed: int = 0) -> Speed:
    """Read random tokens in one prefill, then decode greedily; at least one token each.

    A short run before it, which is not counted, brings the weights into memory.
    """
    if prompt_tokens < 1 or generated_tokens < 1:
        raise UsageError("The lengths to evaluate are numbers of tokens; give at least 1 each.")
    last = engine.tokenizer.token_count
    ids = np.random.default_rng(seed).integers(1, last, prompt_tokens, endpoint=True)
    _run(engine, ids[: engine.metadata.prefill_chunk_size].astype(np.int32), 2)
    return _run(engine, ids.astype(np.int32), generated_tokens)


def _run(engine: Engine, ids: np.ndarray[tuple[int], np.dtype[np.int32]], count: int) -> Speed:
    state = engine.new_state()
    started = time.perf_counter()
    logits = engine.prefill(ids, state)
    read = time.perf_counter()
    for _ in range(count):
        logits = engine.decode(int(logits.argmax()), state)
    return Speed(len(ids), read - started, count, time.perf_counter() - read)
