"""The Python face of the C++ tokenizer: it adds types, and the vocabulary that the package has."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.tokenizer import _core

END_OF_TEXT = 0
"""Stands for no bytes, and encoding never gives it."""
VOCAB_SIZE = _core.VOCAB_SIZE
"""Rows of the World models' embedding and head; ids from 65530 up stand for nothing."""
WORLD_TOKENS = _core.WORLD_TOKENS
"""Tokens of the World vocabulary, which have the ids 1 to 65529."""

Text: TypeAlias = str | bytes | bytearray | memoryview
Ids: TypeAlias = Sequence[int] | NDArray[np.integer]

PACKAGED_VOCABULARY = Path(__file__).parent / "tokenizer_model"
"""The World vocabulary, for models that come without one (see VOCABULARY.md beside it)."""


class WorldTokenizer:
    """Turns text into token ids and back. Immutable, and safe to share between threads.

    Every text and every bytes object can be encoded, and `decode_bytes(encode(x)) == x`.
    Id 0 is the end of text and stands for no bytes; an id above the last token (65529 in the
    World vocabulary) or below zero raises `VocabularyError` wherever it is given.
    """

    __slots__ = ("_core",)

    def __init__(self, core: _core.Tokenizer) -> None:
        """Use one of the `from_` methods, or `default`."""
        self._core = core

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, min_tokens: int = WORLD_TOKENS
    ) -> WorldTokenizer:
        """Read a vocabulary: BlinkDL's text file or a `tokenizer_model`, told apart by content.

        Raises `VocabularyError`, with the file and the line or offset, if it is missing or
        damaged, or has less than `min_tokens` tokens.
        """
        return cls(_core.Tokenizer.from_file(os.fsencode(path), min_tokens))

    @classmethod
    def from_bytes(
        cls, blob: bytes, name: str = "vocabulary", min_tokens: int = WORLD_TOKENS
    ) -> WorldTokenizer:
        """Like `from_file`, from a file's content; `name` stands for the path in messages."""
        return cls(_core.Tokenizer.from_bytes(blob, name, min_tokens))

    @classmethod
    def from_vocab(cls, vocab: Mapping[int, bytes]) -> WorldTokenizer:
        """Take tokens by id, of any number: ids from 1 without a gap, all 256 single bytes."""
        return cls(_core.Tokenizer.from_tokens(dict(vocab)))

    @classmethod
    def default(cls) -> WorldTokenizer:
        """Give the World vocabulary that the package carries; every call gives the same object."""
        return _default()

    @property
    def vocab_size(self) -> int:
        """Rows of the World models' embedding and head, 65536: above every id that is given."""
        return VOCAB_SIZE

    @property
    def token_count(self) -> int:
        """Tokens in the vocabulary: the largest id that encoding can give."""
        return self._core.token_count

    def encode(self, text: Text) -> list[int]:
        """Encode a str, as UTF-8, or any bytes."""
        return self._core.encode(text)

    def encode_array(self, text: Text) -> NDArray[np.int32]:
        """Encode to an int32 array [tokens]: faster than a list and a fifth of its memory."""
        return self._core.encode_array(text)

    def encode_batch(self, texts: Sequence[Text], *, threads: int | None = None) -> list[list[int]]:
        """Encode many texts on several threads, by default on as many as there are cores."""
        return self._core.encode_batch(texts, threads or 0)

    def decode(self, ids: Ids, errors: str = "replace") -> str:
        """Decode to a str; `errors` says, as in `bytes.decode`, what to do with invalid UTF-8."""
        return self._core.decode(ids, errors)

    def decode_bytes(self, ids: Ids) -> bytes:
        """Decode to the bytes of the tokens, which need not be valid UTF-8."""
        return self._core.decode_bytes(ids)

    def id_to_bytes(self, id: int) -> bytes:
        """Give the bytes of one token."""
        return self._core.id_to_bytes(id)

    def bytes_to_id(self, token: bytes) -> int | None:
        """Give the id of the token with exactly these bytes, or None."""
        found = self._core.bytes_to_id(token)
        return None if found < 0 else found

    def stream(self) -> StreamDecoder:
        """Start decoding ids that come one by one."""
        return StreamDecoder(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as `tokenizer_model`: a msgpack map from ids to bytes."""
        from mlc_rwkv_world.artifact.atomic import write_file

        write_file(Path(path), self._core.to_bytes())

    def __reduce__(self) -> tuple[Callable[..., WorldTokenizer], tuple[bytes, str, int]]:
        return WorldTokenizer.from_bytes, (self._core.to_bytes(), "pickled vocabulary", 0)

    def __repr__(self) -> str:
        return f"WorldTokenizer({self.token_count} tokens)"


class StreamDecoder:
    """Turns the ids of one stream into text that can be shown at once.

    The pieces joined are `decode(ids, errors="replace")` of all the ids.
    """

    __slots__ = ("_core",)

    def __init__(self, tokenizer: WorldTokenizer) -> None:
        self._core = _core.StreamDecoder(tokenizer._core)

    def push(self, id: int) -> str:
        """Give the text that `id` completes; an unfinished character is held back."""
        return self._core.push(id)

    def finish(self) -> str:
        """Give U+FFFD for a character left unfinished, or nothing, and start afresh."""
        return self._core.finish()


@functools.cache
def _default() -> WorldTokenizer:
    return WorldTokenizer.from_file(PACKAGED_VOCABULARY)
