"""`mlc_chat_cli` with a model that says what it is told to: `scripted.py TEXTS ARGUMENTS ...`.

TEXTS is a file with a JSON list; the tokens of its texts are chosen one after another, each after
a moment, and then the end of text.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mlc_rwkv_world.cli.start import start_light

start_light()

from mlc_rwkv_world.cli.chat import main  # noqa: E402
from mlc_rwkv_world.runtime import Sampler  # noqa: E402
from mlc_rwkv_world.tokenizer import WorldTokenizer  # noqa: E402

_MOMENT = 0.01


def _tokens(texts: list[str]) -> Iterator[int]:
    tokenizer = WorldTokenizer.default()
    for text in texts:
        yield from tokenizer.encode(text)


if __name__ == "__main__":
    tokens = _tokens(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    def choose(*_: object) -> int:
        time.sleep(_MOMENT)
        return next(tokens, 0)

    Sampler.choose = choose  # type: ignore[assignment]
    sys.exit(main(sys.argv[2:]))
