"""A state is a value: copied, saved, loaded. `python examples/states.py MODEL FILE`.

A text is read once; each question begins from the state that it left, however long the text was.
"""

from __future__ import annotations

import sys

import mlc_rwkv_world as rwkv

TEXT = "User: hi\n\nAssistant: Hi. I am your assistant.\n\n"


def main(model: str, file: str) -> None:
    """Save what was read to `file`, and ask twice from there."""
    engine = rwkv.load(model)
    read = engine.new_state()
    engine.prefill(engine.encode(TEXT), read)
    read.save(file)

    for question in ("What is the capital of France?", "What is the capital of Japan?"):
        state = engine.new_state()
        state.load(file)
        prompt = f"User: {question}\n\nAssistant:"
        answer = engine.generate(prompt, temperature=0, stop="\n\n", state=state)
        print("".join(answer).strip())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
