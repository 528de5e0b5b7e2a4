"""Several questions in one go: `python examples/batch.py MODEL`.

Each step reads one token of every answer that is not at its end. No answer depends on what is asked
beside it.
"""

from __future__ import annotations

import sys

import mlc_rwkv_world as rwkv
from mlc_rwkv_world.serving import BatchEngine

QUESTIONS = (
    "What is the capital of France?",
    "中国的首都是哪里？",
    "What is the capital of Japan?",
)


def main(model: str) -> None:
    """Answer them all."""
    engine = rwkv.load(model)
    results = BatchEngine(engine).generate(
        [f"User: {question}\n\nAssistant:" for question in QUESTIONS],
        sampling=engine.sampling.changed({"temperature": 0}),
        stop=["\n\n"],
    )
    for question, result in zip(QUESTIONS, results, strict=True):
        print(f"{question} -> {result.text.strip()}")


if __name__ == "__main__":
    main(sys.argv[1])
