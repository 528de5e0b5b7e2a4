"""The World tokenizer: greedy longest match over bytes, in C++."""

from importlib.util import find_spec
from pathlib import Path

from mlc_rwkv_world.errors import InstallationError

# A clone's root hides the installed package from `python -m` and has no compiled module.
if find_spec("mlc_rwkv_world.tokenizer._core") is None:
    raise InstallationError(
        f"{Path(__file__).parents[1]} is a source tree without its compiled module. "
        "Run from another folder, or install the tree with `pip install -e .`."
    )

from mlc_rwkv_world.tokenizer.world import (
    END_OF_TEXT,
    PACKAGED_VOCABULARY,
    VOCAB_SIZE,
    WORLD_TOKENS,
    StreamDecoder,
    WorldTokenizer,
)

__all__ = [
    "END_OF_TEXT",
    "PACKAGED_VOCABULARY",
    "VOCAB_SIZE",
    "WORLD_TOKENS",
    "StreamDecoder",
    "WorldTokenizer",
]
