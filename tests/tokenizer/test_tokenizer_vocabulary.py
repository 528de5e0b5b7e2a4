"""Where vocabularies come from, and what is said of damaged ones."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from mlc_rwkv_world.errors import VocabularyError
from mlc_rwkv_world.tokenizer import PACKAGED_VOCABULARY, WORLD_TOKENS, WorldTokenizer

SINGLE_BYTES = {byte + 1: bytes([byte]) for byte in range(256)}


def tokens(tokenizer: WorldTokenizer) -> list[bytes]:
    return [tokenizer.id_to_bytes(id) for id in range(1, tokenizer.token_count + 1)]


def text_form(vocabulary: dict[int, bytes]) -> bytes:
    return "".join(f"{id} {token!r} {len(token)}\n" for id, token in vocabulary.items()).encode()


def msgpack_form(vocabulary: dict[int, bytes]) -> bytes:
    return bytes(msgpack.packb(vocabulary))


FORMS: list[Callable[[dict[int, bytes]], bytes]] = [text_form, msgpack_form]


def test_the_packaged_vocabulary_is_the_published_one(
    tokenizer: WorldTokenizer, vocabulary_text: Path
) -> None:
    assert tokenizer.token_count == WORLD_TOKENS
    assert tokenizer.vocab_size == 65536
    assert tokens(tokenizer) == tokens(WorldTokenizer.from_file(vocabulary_text))
    assert WorldTokenizer.default() is tokenizer


def test_line_ends_do_not_matter(tmp_path: Path, vocabulary_text: Path) -> None:
    content = vocabulary_text.read_bytes()
    assert content.count(b"\r\n") == WORLD_TOKENS
    unix = tmp_path / "lf.txt"
    unix.write_bytes(content.replace(b"\r\n", b"\n"))
    assert tokens(WorldTokenizer.from_file(unix)) == tokens(WorldTokenizer.default())


def test_save(tmp_path: Path, vocabulary_text: Path) -> None:
    saved = tmp_path / "tokenizer_model"
    WorldTokenizer.from_file(vocabulary_text).save(saved)
    assert saved.read_bytes() == PACKAGED_VOCABULARY.read_bytes()
    unpacked = msgpack.unpackb(saved.read_bytes(), strict_map_key=False)
    assert unpacked == dict(enumerate(tokens(WorldTokenizer.default()), start=1))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer_model"]


@pytest.mark.parametrize("form", FORMS)
def test_small_vocabularies(form: Callable[[dict[int, bytes]], bytes], tmp_path: Path) -> None:
    vocabulary = SINGLE_BYTES | {257: b"ab", 258: b"abcd", 259: b"it's \\\n\x00\xff"}
    shuffled = dict(sorted(vocabulary.items(), key=lambda item: item[0] * 7919 % 1009))
    path = tmp_path / "vocabulary"
    path.write_bytes(form(shuffled))
    for tokenizer in (
        WorldTokenizer.from_vocab(shuffled),
        WorldTokenizer.from_bytes(form(shuffled), min_tokens=259),
        WorldTokenizer.from_file(path, min_tokens=1),
    ):
        assert tokens(tokenizer) == list(vocabulary.values())
        assert tokenizer.encode("abcabcd") == [257, ord("c") + 1, 258]
        assert repr(tokenizer) == "WorldTokenizer(259 tokens)"


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({}, "without a token for the single byte 0"),
        ({1: b"a"}, "without a token for the single byte 0"),
        (SINGLE_BYTES | {0: b"ab"}, "token id 0 is reserved for the end of text"),
        (SINGLE_BYTES | {-1: b"ab"}, "token id -1 is below 1"),
        (SINGLE_BYTES | {65536: b"ab"}, "token id 65536 is above 65535"),
        (SINGLE_BYTES | {2**40: b"ab"}, f"token id {2**40} does not exist"),
        (SINGLE_BYTES | {258: b"ab"}, "without token id 257, and ids run to 258"),
        (SINGLE_BYTES | {257: b""}, "token id 257 has no bytes"),
        (SINGLE_BYTES | {257: b"a"}, "token id 257 has the same bytes as token id 98"),
        (SINGLE_BYTES | {257: b"a" * 256}, "token id 257 has 256 bytes, more than 255"),
    ],
)
def test_impossible_vocabularies(vocabulary: dict[int, bytes], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        WorldTokenizer.from_vocab(vocabulary)


def test_a_token_must_be_bytes() -> None:
    with pytest.raises(TypeError, match="the token with id 257 is str, and bytes are expected"):
        WorldTokenizer.from_vocab(SINGLE_BYTES | {257: "ab"})  # type: ignore[arg-type]


def damaged() -> dict[str, tuple[bytes, str]]:
    """Contents of a file, and what is said of each behind the file's name."""
    world = dict(enumerate(tokens(WorldTokenizer.default()), start=1))
    text, packed = text_form(world), msgpack_form(world)
    lines = text.splitlines(keepends=True)
    return {
        "empty": (b"", " is empty"),
        "garbage": (b"<html>404</html>", ", line 1: expected `id literal length`, found byte 60"),
        "pickle": (pickle.dumps(world), r", offset 1: \d+ bytes follow the end of the map"),
        "zeros": (bytes(5000), ", line 1: expected `id literal length`, found byte 0"),
        "text cut in a line": (text[:500_000], r", line \d+: "),
        "text cut behind a line": (
            b"".join(lines[:60_000]),
            ", line 60000: the vocabulary ends here with 60000 tokens, and at least 65529",
        ),
        "text without a line": (
            b"".join(lines[:99] + lines[100:]) + b"65530 'mlc-rwkv-world' 14\n",
            ", line 65529: the vocabulary ends here without token id 100",
        ),
        "text with a line twice": (
            b"".join(lines[:100] + lines[99:]),
            ", line 101: token id 100 was given before, at line 100",
        ),
        "text with a token twice": (
            text + b"65530 'User' 4\n",
            ", line 65530: token id 65530 has the same bytes as token id 24281, at line 24281",
        ),
        "text with an expression": (
            b"".join(lines[:300]) + b"301 __import__('os') 2\n",
            ", line 301: expected a quoted str or bytes literal, found byte 95",
        ),
        "text with a wrong length": (
            b"".join(lines[:300]) + b"301 'ab' 3\n",
            ", line 301: the literal has 2 bytes, and the line says 3",
        ),
        "text in another encoding": (
            b"".join(lines[:300]) + b"301 '\xe9' 1\n",
            ", line 301: the literal is not valid UTF-8",
        ),
        "msgpack cut": (
            packed[:400_000],
            r", offset (399|400)\d+: the file ends after 400000 bytes",
        ),
        "msgpack that goes on": (
            packed + b"x",
            ", offset 700624: 1 bytes follow the end of the map",
        ),
        "msgpack of too few": (
            msgpack_form(SINGLE_BYTES),
            ", offset 1151: the vocabulary ends here with 256 tokens, and at least 65529",
        ),
        "msgpack with an id twice": (
            b"\xdf\x00\x00\xff\xfa" + packed[3:] + b"\x05\xc4\x01a",
            ", offset 700626: token id 5 was given before, at offset 21",
        ),
        "msgpack with a token twice": (
            b"\xdf\x00\x00\xff\xfa" + packed[3:] + b"\xcd\xff\xfa\xc4\x01a",
            ", offset 700626: token id 65530 has the same bytes as token id 98, at offset 393",
        ),
        "msgpack of text ids": (
            bytes(msgpack.packb({str(id): token for id, token in world.items()})),
            ", offset 3: expected a token id, found a value that starts with byte 161",
        ),
        "msgpack of numbers": (
            bytes(msgpack.packb(dict.fromkeys(world, 7))),
            ", offset 4: expected the bytes of a token, found a value that starts with byte 7",
        ),
    }


DAMAGED = damaged()


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    path = tmp_path / "vocabulary"
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=f"^{re.escape(str(path))}{message}.*; take a fresh"):
        WorldTokenizer.from_file(path)


@pytest.mark.parametrize("form", FORMS)
def test_any_truncation_is_an_error(
    form: Callable[[dict[int, bytes]], bytes], tmp_path: Path
) -> None:
    content = form(SINGLE_BYTES | {257: b"ab", 258: b"\n'\\\xff"})
    for size in itertools.chain(range(0, len(content) - 1, 97), range(len(content) - 30)):
        with pytest.raises(VocabularyError, match=r"^cut"):
            WorldTokenizer.from_bytes(content[:size], name="cut", min_tokens=258)


def test_what_is_no_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(VocabularyError, match=f"^{re.escape(str(missing))}: No such file"):
        WorldTokenizer.from_file(missing)
    with pytest.raises(VocabularyError, match=f"^{re.escape(str(tmp_path))}: Is a directory"):
        WorldTokenizer.from_file(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["sparse", "device"])
def test_files_of_any_size_are_refused_by_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tokenizer_model"
    if kind == "device":
        path = Path("/dev/zero")
    else:
        shutil.copy(PACKAGED_VOCABULARY, path)
        os.truncate(path, 3 << 30)
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from mlc_rwkv_world.tokenizer import WorldTokenizer\n"
        "from mlc_rwkv_world.errors import VocabularyError\n"
        "status = lambda: Path('/proc/self/status').read_text()\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+) kB', status())[1])\n"
        "before = peak()\n"
        "try:\n"
        "    WorldTokenizer.from_file(sys.argv[1])\n"
        "except VocabularyError as error:\n"
        "    print(peak() - before < 100 << 10, error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(f"True {path} has more than 33554432 bytes, which no voc")


def test_the_largest_vocabulary_fits(tmp_path: Path) -> None:
    every = [bytes([byte]) for byte in range(256)]
    every += [bytes(253) + number.to_bytes(2, "big") for number in range(65535 - len(every))]
    tokenizer = WorldTokenizer.from_vocab(dict(enumerate(every, 1)))
    tokenizer.save(tmp_path / "tokenizer_model")
    assert WorldTokenizer.from_file(tmp_path / "tokenizer_model").token_count == 65535


def test_pickling(tokenizer: WorldTokenizer) -> None:
    text = "User: hi\n\nAssistant:"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(tokenizer, protocol))
        assert again.encode(text) == tokenizer.encode(text)
    small = WorldTokenizer.from_vocab(SINGLE_BYTES | {257: b"ab"})
    assert copy.deepcopy(small).encode("abc") == [257, ord("c") + 1]


def test_importing_it_needs_no_compiler() -> None:
    script = (
        "import sys, mlc_rwkv_world.tokenizer; "
        "print(sorted({'tvm', 'torch', 'mlc_llm'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
