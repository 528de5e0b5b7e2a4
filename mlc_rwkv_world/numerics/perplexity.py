"""How well a model predicts a text: perplexity for each token, bits for each byte."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.state import State

DEFAULT_WINDOW = 1024


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The sum of -ln p over `tokens` tokens, which stand for `nbytes` bytes of text.

    `by_position` is the mean of -ln p at each place of a window: what reading on teaches.
    """

    tokens: int
    nbytes: int
    nats: float
    by_position: tuple[float, ...] = ()

    @property
    def perplexity(self) -> float:
        """exp of the mean of -ln p over tokens; infinity where it is none or too large."""
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Comparable between vocabularies, as perplexity is not."""
        return self.nats / math.log(2) / self.nbytes

    def __str__(self) -> str:
        return (
            f"{self.bits_per_byte:.4f} bits per byte, perplexity {self.perplexity:.4f} "
            f"({self.tokens} tokens, {self.nbytes} bytes)"
        )


def predict(
    engine: Engine,
    text: str | bytes,
    *,
    window: int = DEFAULT_WINDOW,
    state: State | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prediction:
    """How well the model predicts each token of a text from those before it.

    The text is cut into windows of `window` tokens, each read after token 0, the end of a text,
    from `state`, which stays as it is, or a new one. Memory: one state for each of the windows that
    the library reads together.
    A logit that is not finite makes the sum infinite. Raises UsageError where there is no text.
    """
    ids = np.asarray(engine.encode(text), np.int64)
    if len(ids) == 0:
        raise UsageError("there is no text to predict.")
    if window < 1:
        raise UsageError(f"--window {window}: give at least one token.")
    windows = [ids[start : start + window] for start in range(0, len(ids), window)]
    longest = max(map(len, windows))
    sums, counts = np.zeros(longest), np.zeros(longest, np.int64)
    done = 0
    size = engine.metadata.max_batch_size
    for start in range(0, len(windows), size):
        group = windows[start : start + size]
        states = [engine.new_state() if state is None else state.copy() for _ in group]
        for position, (found, count) in enumerate(_together(engine, group, states)):
            sums[position] += found
            counts[position] += count
            done += count
            progress(done, len(ids))
    nbytes = len(text.encode() if isinstance(text, str) else text)
    return Prediction(len(ids), nbytes, float(sums.sum()), tuple((sums / counts).tolist()))


def _together(
    engine: Engine, windows: Sequence[NDArray[np.int64]], states: Sequence[State]
) -> Iterator[tuple[float, int]]:
    """The sum of -ln p and of how many tokens, for each step through all windows."""
    previous = [0] * len(windows)
    for position in range(max(map(len, windows))):
        alive = [i for i, ids in enumerate(windows) if position < len(ids)]
        logits = engine.decode_batch([previous[i] for i in alive], [states[i] for i in alive])
        following = [int(windows[i][position]) for i in alive]
        yield float(_nats(np.atleast_2d(logits), following).sum()), len(alive)
        for i, token in zip(alive, following, strict=True):
            previous[i] = token


def _nats(logits: NDArray[np.float32], following: Sequence[int]) -> NDArray[np.float64]:
    """-ln of the probability of each row's following token, [B]; infinity for a row with a NaN."""
    rows = logits.astype(np.float64)
    broken = ~np.isfinite(rows).all(axis=1)
    rows[broken] = 0
    top = rows.max(axis=1)
    total = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    result = np.asarray(total - rows[np.arange(len(rows)), following])
    result[broken] = np.inf
    return result
