"""A conversation: `python examples/chat.py MODEL`."""

from __future__ import annotations

import sys

import mlc_rwkv_world as rwkv


def main(model: str) -> None:
    """Ask two questions, one after the other."""
    chat = rwkv.Chat(rwkv.load(model), seed=0)
    for message in ("What is the capital of France?", "What is the capital of Japan?"):
        print(f"User: {message}\nAssistant: ", end="")
        for text in chat.ask(message):
            print(text, end="", flush=True)
        print()
    print(chat.speed)


if __name__ == "__main__":
    main(sys.argv[1])
