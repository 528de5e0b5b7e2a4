"""What each token gives, while other work goes on: `python examples/events.py MODEL`."""

from __future__ import annotations

import asyncio
import sys

import mlc_rwkv_world as rwkv

PROMPT = "User: What is the capital of France?\n\nAssistant:"


async def main(model: str) -> None:
    """Print each token with its log-probability, and the likeliest two."""
    engine = rwkv.load(model)
    stream = engine.generate(PROMPT, temperature=0, stop="\n\n", top_scores=2)
    async for event in stream.events():
        others = ", ".join(f"{token}: {score:.3f}" for token, score in event.top)
        print(f"{event.token:6} {event.text!r:12} {event.log_probability:8.3f}  [{others}]")
        if event.finish_reason is not None:
            print(f"It ended by {event.finish_reason}.")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
