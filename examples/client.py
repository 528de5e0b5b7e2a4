"""Ask a server by OpenAI's own client: `rwkv-world serve MODEL`, then `python examples/client.py`.

Needs `pip install openai`. The address is http://127.0.0.1:8000/v1 unless one is given.
"""

from __future__ import annotations

import sys
from typing import Any

from openai import OpenAI


def main(address: str = "http://127.0.0.1:8000/v1") -> None:
    """Ask in two turns, and print the answers as they come."""
    client = OpenAI(base_url=address, api_key="none is needed")
    model = client.models.list().data[0].id
    messages: list[Any] = []
    for question in ("What is the capital of France?", "What is the capital of Japan?"):
        messages.append({"role": "user", "content": question})
        answer = ""
        print(f"User: {question}\nAssistant: ", end="")
        stream = client.chat.completions.create(
            model=model, messages=messages, temperature=0, stream=True
        )
        for chunk in stream:
            text = chunk.choices[0].delta.content or "" if chunk.choices else ""
            answer += text
            print(text, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main(*sys.argv[1:])
