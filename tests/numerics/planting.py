"""What a library of the trained model computes in, and the answers that it gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import mlc_rwkv_world as world
from mlc_rwkv_world.storage import format_named

LIBRARY_OPTIONS: dict[str, Any] = {"prefill_chunk_size": 64, "stock": False}
QUESTIONS = (
    "What is the capital of France?",
    "Which one is not like the others: apple, pear, banana, hammer?",
    "中国的首都是哪里？",
    "一，二，三，四，后面是什么？",
)
ANSWER_TOKENS = 6


@dataclasses.dataclass(frozen=True)
class Precision:
    """The choices of a build that decide how a library computes.

    `arithmetic` None is float32, or what a build chooses where `compute_dtype` is float16.
    """

    quantization: str
    fp32_layers: str = "none"
    compute_dtype: str = "float16"
    float32_keys: bool = True
    arithmetic: str | None = None

    @property
    def products(self) -> str:
        """The build's option."""
        return self.arithmetic or ("float32" if self.compute_dtype == "float32" else "auto")

    @property
    def is_default(self) -> bool:
        """Whether this is what a build for a CPU chooses by itself."""
        plain = format_named(self.quantization).matrix.bits == 0
        default = Precision(self.quantization, compute_dtype="float32", arithmetic=self.arithmetic)
        return self == default and (plain or self.arithmetic == "auto")

    @property
    def name(self) -> str:
        """A folder's name."""
        return "-".join(map(str, dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class Answers:
    """Greedy answers to `QUESTIONS`, and whether every logit on the way was finite."""

    texts: tuple[str, ...]
    finite: bool


def answers(folder: Path, library: Path) -> Answers:
    """Reads each question, then decodes step by step."""
    engine = world.load(folder, "cpu", model_lib=library)
    finite = True
    texts = []
    for question in QUESTIONS:
        state = engine.new_state()
        logits = engine.prefill(engine.encode(f"User: {question}\n\nAssistant:"), state)
        ids = []
        for _ in range(ANSWER_TOKENS):
            finite = finite and bool(np.isfinite(logits).all())
            ids.append(int(np.nan_to_num(logits)[:65530].argmax()))
            logits = engine.decode(ids[-1], state)
        texts.append(engine.tokenizer.decode(ids))
    return Answers(tuple(texts), finite)
