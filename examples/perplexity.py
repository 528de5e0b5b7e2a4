"""How well a model predicts a text: `python examples/perplexity.py MODEL FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

import mlc_rwkv_world as rwkv
from mlc_rwkv_world.numerics.perplexity import predict


def main(model: str, file: str) -> None:
    """Print perplexity, and what the first and the last token of a window cost."""
    found = predict(rwkv.load(model), Path(file).read_text(encoding="utf-8"), window=64)
    print(found)
    first, last = found.by_position[0], found.by_position[-1]
    print(f"The first token of a window costs {first:.2f} nats, the last {last:.2f}.")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
