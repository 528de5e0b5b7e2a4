from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOT_A_NUMBER: int
NOTHING_ALLOWED: int

class Sampler:
    def __init__(
        self,
        *,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        presence_penalty: float,
        frequency_penalty: float,
        repetition_penalty: float,
        penalty_decay: float,
        logit_bias: Sequence[tuple[int, float]],
        vocab_size: int,
        seed: int,
    ) -> None: ...
    def choose(self, logits: NDArray[np.float32], mask: NDArray[Any] | None) -> int: ...
    def take(self, id: int) -> None: ...
    def forget(self) -> None: ...
    def memory(self) -> tuple[NDArray[np.int32], NDArray[np.float64], int, int]: ...
    def restore(
        self, ids: Sequence[int], weights: Sequence[float], seed: int, taken: int
    ) -> None: ...

def choose_all(
    samplers: Sequence[Sampler],
    logits: NDArray[np.float32],
    masks: Sequence[NDArray[Any] | None],
    launch: int,
) -> list[int]: ...
def score(
    ids: Sequence[int], logits: NDArray[np.float32], top: Sequence[int], usable: int
) -> list[tuple[float, list[tuple[int, float]]]]: ...
