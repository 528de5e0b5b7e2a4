"""Ids back to bytes and text, whole and one by one."""

from __future__ import annotations

import array
import codecs
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc_rwkv_world.errors import VocabularyError
from mlc_rwkv_world.tokenizer import END_OF_TEXT, VOCAB_SIZE, WORLD_TOKENS, WorldTokenizer

ID = st.integers(0, WORLD_TOKENS)
UNKNOWN = [-1, WORLD_TOKENS + 1, VOCAB_SIZE - 1, VOCAB_SIZE, 2**31, 2**63, -(2**31) - 1, -(2**70)]


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4"]
)
def test_arrays_of_every_integer_type(tokenizer: WorldTokenizer, dtype: str) -> None:
    ids = np.array([73, 102, 109, 109, 112], dtype)
    assert tokenizer.decode_bytes(ids) == b"Hello"
    assert tokenizer.decode(np.repeat(ids, 3)[::3]) == "Hello"


def test_other_containers(tokenizer: WorldTokenizer) -> None:
    ids = [73, 102, 109, 109, 112]
    assert tokenizer.decode(tuple(ids)) == "Hello"
    assert tokenizer.decode(range(66, 70)) == "ABCD"
    assert tokenizer.decode(array.array("H", ids)) == "Hello"
    assert tokenizer.decode([np.int64(73), np.uint8(102)]) == "He"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(np.zeros(0, np.int32)) == ""


@pytest.mark.parametrize("ids", ["Hello", b"Hello", bytearray(b"Hello"), 73, None, [1.5], ["a"]])
def test_what_is_not_ids_is_refused(tokenizer: WorldTokenizer, ids: object) -> None:
    with pytest.raises(TypeError):
        tokenizer.decode(ids)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        tokenizer.decode_bytes(ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bool", "complex64"])
def test_arrays_of_other_types_are_refused(tokenizer: WorldTokenizer, dtype: str) -> None:
    with pytest.raises(TypeError):
        tokenizer.decode(np.zeros(3, dtype))


def test_end_of_text_has_no_bytes(tokenizer: WorldTokenizer) -> None:
    assert tokenizer.id_to_bytes(END_OF_TEXT) == b""
    assert tokenizer.decode([END_OF_TEXT, 24281, END_OF_TEXT]) == "User"


@pytest.mark.parametrize("id", UNKNOWN)
def test_an_unknown_id_raises(tokenizer: WorldTokenizer, id: int) -> None:
    message = f"token id {id} does not exist"
    with pytest.raises(VocabularyError, match=message):
        tokenizer.id_to_bytes(id)
    with pytest.raises(VocabularyError, match=message):
        tokenizer.decode([1, id, 2])
    with pytest.raises(VocabularyError, match=message):
        tokenizer.decode_bytes([1, id, 2])
    with pytest.raises(VocabularyError, match=message):
        tokenizer.stream().push(id)
    if -(2**63) <= id < 2**63:
        with pytest.raises(VocabularyError, match=message):
            tokenizer.decode_bytes(np.array([1, id, 2], np.int64))


def test_an_unknown_id_in_an_int32_array_raises(tokenizer: WorldTokenizer) -> None:
    for id in (-1, 65530, -(2**31), 2**31 - 1):
        with pytest.raises(VocabularyError, match=f"token id {id} does not exist"):
            tokenizer.decode_bytes(np.array([1, id, 2], np.int32))


def test_bytes_to_id(tokenizer: WorldTokenizer) -> None:
    for id in (1, 256, 261, 41693, WORLD_TOKENS):
        assert tokenizer.bytes_to_id(tokenizer.id_to_bytes(id)) == id
    assert tokenizer.bytes_to_id(b"") is None
    assert tokenizer.bytes_to_id(b"no such token") is None
    with pytest.raises(TypeError):
        tokenizer.bytes_to_id("Hello")  # type: ignore[arg-type]


def test_errors_policy(tokenizer: WorldTokenizer) -> None:
    ids = tokenizer.encode(b"a\xe6\x97b\xff")
    assert tokenizer.decode(ids) == "a\ufffdb\ufffd"
    assert tokenizer.decode(ids, errors="ignore") == "ab"
    assert tokenizer.decode(ids, errors="backslashreplace") == r"a\xe6\x97b\xff"
    assert tokenizer.decode(ids, "surrogateescape").encode("utf-8", "surrogateescape") == (
        b"a\xe6\x97b\xff"
    )
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode(ids, errors="strict")


@given(ids=st.lists(ID, max_size=100))
def test_any_ids(tokenizer: WorldTokenizer, ids: list[int]) -> None:
    content = b"".join(tokenizer.id_to_bytes(id) for id in ids)
    assert tokenizer.decode_bytes(ids) == content
    assert tokenizer.decode_bytes(np.array(ids, np.int32)) == content
    assert tokenizer.decode(ids) == content.decode(errors="replace")


def test_a_stream_holds_back_incomplete_characters(tokenizer: WorldTokenizer) -> None:
    stream = tokenizer.stream()
    assert [stream.push(byte + 1) for byte in "é日".encode()] == ["", "é", "", "", "日"]
    assert stream.finish() == ""
    assert stream.push(0xE6 + 1) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


@given(content=st.one_of(st.binary(max_size=60), st.lists(ID, max_size=40)))
def test_a_stream_joins_to_the_whole(tokenizer: WorldTokenizer, content: bytes | list[int]) -> None:
    ids = [byte + 1 for byte in content] if isinstance(content, bytes) else content
    stream = tokenizer.stream()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces = [stream.push(id) for id in ids]
    # Python holds back the first two bytes of a surrogate, which can no longer become a character.
    if not re.search(rb"\xed[\xa0-\xbf]", tokenizer.decode_bytes(ids)):
        assert pieces == [decoder.decode(tokenizer.id_to_bytes(id)) for id in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_streams_are_independent(tokenizer: WorldTokenizer, rng: random.Random) -> None:
    streams = [tokenizer.stream() for _ in range(8)]
    texts = ["".join(rng.choices("aé日😀", k=50)) for _ in streams]
    shown = ["" for _ in streams]
    for step in range(4 * 50):
        for index, (stream, text) in enumerate(zip(streams, texts, strict=True)):
            content = text.encode()
            if step < len(content):
                shown[index] += stream.push(content[step] + 1)
    assert shown == texts
