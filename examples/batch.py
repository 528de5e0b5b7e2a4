"""Several questions in one go: `python examples/batch.py MODEL`.

Each step reads one token of every sequence that is not at its end. No answer depends on what is
asked beside it.
"""

from __future__ import annotations

import sys

import mlc_rwkv_world as rwkv
from mlc_rwkv_world.artifact.stopping import StopRule
from mlc_rwkv_world.runtime import Answer

QUESTIONS = (
    "What is the capital of France?",
    "中国的首都是哪里？",
    "What is the capital of Japan?",
)


def main(model: str) -> None:
    """Answer them all."""
    engine = rwkv.load(model)
    states = [engine.new_state() for _ in QUESTIONS]
    greedy = engine.sampling.changed({"temperature": 0})
    rule = StopRule(("\n\n",))
    answers = [Answer(engine.tokenizer, engine.sampler(greedy), stop=rule) for _ in QUESTIONS]
    texts = [""] * len(QUESTIONS)

    prompts = [engine.encode(f"User: {question}\n\nAssistant:") for question in QUESTIONS]
    logits = dict(enumerate(engine.prefill_batch(prompts, states)))
    while logits:
        tokens = {i: answers[i].choose(row) for i, row in logits.items()}
        for i, token in tokens.items():
            texts[i] += answers[i].take(token)
        going = [i for i in tokens if answers[i].finish_reason is None]
        if not going:
            break
        rows = engine.decode_batch([tokens[i] for i in going], [states[i] for i in going])
        logits = dict(zip(going, rows.reshape(len(going), -1), strict=True))
    for question, text in zip(QUESTIONS, texts, strict=True):
        print(f"{question} -> {text.strip()}")


if __name__ == "__main__":
    main(sys.argv[1])
