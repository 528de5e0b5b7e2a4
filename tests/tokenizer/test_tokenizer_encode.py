"""The ids are those of BlinkDL's own tokenizer, for every input."""

from __future__ import annotations

import random
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from mlc_rwkv_world.tokenizer import WORLD_TOKENS, WorldTokenizer

SCRIPTS = Path(__file__).parent / "scripts.txt"


def test_known_ids(tokenizer: WorldTokenizer) -> None:
    assert tokenizer.encode("User: hi\n\nAssistant:") == [24281, 59, 4571, 261, 5585, 41693, 59]
    assert tokenizer.encode(" Hello") == [36786]
    assert tokenizer.encode("\r\n\r\n") == [19244]
    assert tokenizer.encode("") == []


def test_real_texts(
    tokenizer: WorldTokenizer, reference: TRIE_TOKENIZER, vocabulary_text: Path
) -> None:
    code = Path(sysconfig.get_path("stdlib")) / "typing.py"
    for path in (SCRIPTS, code, vocabulary_text):
        content = path.read_bytes()
        ids = reference.encodeBytes(content)
        assert tokenizer.encode(content) == ids
        assert tokenizer.encode(content.decode()) == ids
        assert tokenizer.encode_array(content).tolist() == ids
        assert tokenizer.decode_bytes(ids) == content
        assert tokenizer.decode(ids) == content.decode()


def test_every_token(tokenizer: WorldTokenizer, reference: TRIE_TOKENIZER) -> None:
    tokens = [tokenizer.id_to_bytes(id) for id in range(1, WORLD_TOKENS + 1)]
    assert tokens == [reference.idx2token[id] for id in range(1, WORLD_TOKENS + 1)]
    assert tokenizer.encode_batch(tokens) == [[id] for id in range(1, WORLD_TOKENS + 1)]


def test_every_pair_of_random_tokens(
    tokenizer: WorldTokenizer, reference: TRIE_TOKENIZER, rng: random.Random
) -> None:
    # The C++ tests do this for 2,000 tokens.
    tokens = [tokenizer.id_to_bytes(id) for id in rng.sample(range(1, WORLD_TOKENS + 1), 200)]
    pairs = [first + second for first in tokens for second in tokens]
    assert tokenizer.encode_batch(pairs) == [reference.encodeBytes(pair) for pair in pairs]


def test_random_bytes(
    tokenizer: WorldTokenizer, reference: TRIE_TOKENIZER, rng: random.Random
) -> None:
    for size in range(500):
        content = rng.randbytes(size)
        ids = tokenizer.encode(content)
        assert ids == reference.encodeBytes(content)
        assert tokenizer.decode_bytes(ids) == content


@pytest.mark.slow
@settings(max_examples=300)
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=200)))
def test_any_input(
    tokenizer: WorldTokenizer, reference: TRIE_TOKENIZER, content: bytes | str
) -> None:
    data = content.encode() if isinstance(content, str) else content
    ids = tokenizer.encode(content)
    assert ids == reference.encodeBytes(data)
    assert tokenizer.encode_array(content).tolist() == ids
    assert tokenizer.encode_batch([content]) == [ids]
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode(errors="replace")


def test_bytes_like_inputs(tokenizer: WorldTokenizer) -> None:
    content = "héllo".encode()
    ids = tokenizer.encode(content)
    assert tokenizer.encode(bytearray(content)) == ids
    assert tokenizer.encode(memoryview(content)) == ids
    assert tokenizer.encode(np.frombuffer(content, np.uint8).data) == ids


@pytest.mark.parametrize("method", ["encode", "encode_array"])
def test_other_inputs_are_refused(tokenizer: WorldTokenizer, method: str) -> None:
    encode = getattr(tokenizer, method)
    with pytest.raises(TypeError, match="expected str or bytes to encode, found int"):
        encode(3)
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        encode("a\ud800")
    with pytest.raises(BufferError):
        encode(memoryview(b"abcd")[::2])


def test_array(tokenizer: WorldTokenizer) -> None:
    array = tokenizer.encode_array("User: hi" * 1000)
    assert array.dtype == np.int32
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert tokenizer.encode_array("").shape == (0,)


def test_array_of_more_tokens_than_expected(tokenizer: WorldTokenizer) -> None:
    # One token for each byte: more than the first guess at the array's size has room for.
    content = bytes(range(1, 9)) * 5000
    array = tokenizer.encode_array(content)
    assert array.tolist() == [byte + 1 for byte in content]


def test_a_list_shares_its_ints(tokenizer: WorldTokenizer) -> None:
    first, second = tokenizer.encode("User"), tokenizer.encode("User")
    assert first == second == [24281]
    assert first[0] is second[0]


def test_batch(tokenizer: WorldTokenizer, rng: random.Random) -> None:
    text = SCRIPTS.read_text("utf-8")
    texts: list[str | bytes] = [text[start : start + 3000] for start in range(0, 1500, 3)]
    texts += ["", b"", b"\xff", text.encode()]
    rng.shuffle(texts)
    expected = [tokenizer.encode(text) for text in texts]
    for threads in (None, 1, 2, 5):
        assert tokenizer.encode_batch(texts, threads=threads) == expected
    assert tokenizer.encode_batch(tuple(texts)) == expected
    assert tokenizer.encode_batch([]) == []
    with pytest.raises(TypeError, match="expected str or bytes to encode, found NoneType"):
        tokenizer.encode_batch(["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected a sequence of texts to encode, found one text"):
        tokenizer.encode_batch("ab")


@pytest.mark.parametrize("method", ["encode_array", "encode_batch"])
def test_other_threads_run_meanwhile(tokenizer: WorldTokenizer, method: str) -> None:
    text = "Assistant: " * 2_000_000
    running = threading.Event()
    done = threading.Event()

    def work() -> None:
        running.set()
        if method == "encode_array":
            tokenizer.encode_array(text)
        else:
            # The lists are made under the lock, so there should not be much in them.
            tokenizer.encode_batch([" " * 20_000_000], threads=1)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    running.wait()
    steps = 0
    while not done.is_set():
        time.sleep(sys.getswitchinterval() / 10)
        steps += 1
    thread.join()
    assert steps > 5


def test_time_grows_with_the_text_alone(tokenizer: WorldTokenizer) -> None:
    # 79 of a character that has a token of 80: the furthest that a match can go back.
    worst = ("#" * 79 + "x").encode()

    def seconds(repeats: int) -> float:
        content = worst * repeats
        start = time.perf_counter()
        tokenizer.encode_array(content)
        return time.perf_counter() - start

    small = min(seconds(1000) for _ in range(5))
    large = min(seconds(30_000) for _ in range(3))
    # Quadratic time would be 900 times as much.
    assert large < 150 * small
