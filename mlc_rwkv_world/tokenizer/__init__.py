"""The World tokenizer: greedy longest match over bytes, in C++."""

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
