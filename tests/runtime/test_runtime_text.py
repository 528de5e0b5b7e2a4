"""Text that arrives in bytes, in every way to cut it."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from mlc_rwkv_world.artifact.stopping import StopRule, Thought
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime.text import TextStream

BLANK = StopRule(("\n\n",))


def stream(pieces: list[bytes], rule: StopRule) -> tuple[list[str], TextStream]:
    text = TextStream(rule)
    shown = []
    for piece in pieces:
        shown.append(text.push(piece))
        if text.stopped:
            return shown, text
    return [*shown, text.finish()], text


def cuts(data: bytes, seed: int) -> list[bytes]:
    """`data` in random pieces, most of them short."""
    rng = random.Random(seed)
    pieces = []
    while data:
        length = rng.choice([1, 1, 2, 3, 7])
        pieces.append(data[:length])
        data = data[length:]
    return pieces


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("Hello, world", [], "Hello, world"),
        ("你好，世界 🎉!", [], "你好，世界 🎉!"),
        ("An answer.\n\nUser: more", ["\n\n"], "An answer."),
        ("好。\n\n用户", ["\n\n"], "好。"),
        ("one\ntwo\n", ["\n\n"], "one\ntwo\n"),
        ("aabaabaac", ["aabaac"], "aab"),
        ("abcabd", ["abd", "cab"], "ab"),
        ("x" * 30 + "STOP", ["STOP", "XSTOP"], "x" * 30),
        ("stop here 停", ["停"], "stop here "),
        ("停止", ["止"], "停"),
    ],
)
def test_every_cut_gives_the_same_text(
    text: str, stop: list[str], expected: str, seed: int
) -> None:
    shown, result = stream(cuts(text.encode(), seed), StopRule(tuple(stop)))
    assert "".join(shown) == expected
    assert result.given(0).decode() == expected
    assert result.stopped == (text != expected)
    assert "\N{REPLACEMENT CHARACTER}" not in expected


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (">\nFirst.\n\nThen.\n</think>\nYes.\n\nUser", ">\nFirst.\n\nThen.\n</think>\nYes."),
        (">\n\n</think>\n\n \n\nYes.\n\n", ">\n\n</think>\n\n \n\nYes."),
        (">a</thin></think>b </think>c\n\n", ">a</thin></think>b </think>c"),
        (">好\n\n想</think>\n\n好。\n\n用", ">好\n\n想</think>\n\n好。"),
        (">lost\n\nUser: </think>", ">lost"),
        (">lost\n\nUser</think>x\n\n", ">lost\n\nUser</think>x"),
    ],
)
def test_a_thought_may_hold_blank_lines(text: str, expected: str, seed: int) -> None:
    rule = StopRule(("\n\n",), thought=Thought(">", "</think>", ("\n\nUser:",)))
    shown, result = stream(cuts(text.encode(), seed), rule)
    assert "".join(shown) == expected
    assert result.stopped
    assert result.in_thought == ("</think>" not in expected)
    # The mark comes in one piece: whoever parts thought and answer need not hold it back.
    start = expected.find("</think>")
    assert not any(start < end < start + 8 for end in accumulate(map(len, shown)) if start >= 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (">\n\nYes.\n\n", ">\n\nYes."),
        (">Yes > no\n\n", ">Yes > no"),
        ("Yes.\n\n>", "Yes."),
        ("\n\n>", ""),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_an_answer_behind_a_thought_that_the_prompt_holds(
    text: str, expected: str, seed: int
) -> None:
    """The model owes the last character of the mark, and may leave it out."""
    rule = StopRule(("\n\n",), thought=Thought(">"))
    shown, result = stream(cuts(text.encode(), seed), rule)
    assert "".join(shown) == expected
    assert result.stopped and not result.in_thought


def test_text_is_given_as_soon_as_it_is_certain() -> None:
    text = TextStream(BLANK)
    assert text.push(b" Par") == " Par"
    assert not text.holds_back
    assert text.push("é".encode()[:1]) == ""
    assert text.holds_back
    assert text.push("é".encode()[1:] + b"\n") == "é"
    assert text.holds_back
    assert text.push(b"x") == "\nx"
    assert not text.holds_back


def test_a_character_that_never_ends_is_never_shown() -> None:
    text = TextStream()
    assert text.push(b"a" + "好".encode()[:2]) == "a"
    assert text.finish() == ""
    assert text.given(0) == b"a"


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    text = TextStream(BLANK)
    assert text.push(b"a\xffb") == "a\N{REPLACEMENT CHARACTER}b"
    assert text.given(0) == b"a\xffb"
    assert text.push(b"\xe5\n\nx") == ""
    assert text.stopped
    assert text.given(0) == b"a\xffb"


def test_what_is_forgotten_still_counts() -> None:
    text = TextStream(BLANK)
    text.push(b"one two\n")
    assert text.end == 7
    text.forget(4)
    assert text.given(4) == b"two"
    text.push(b"three")
    assert text.given(6) == b"o\nthree"
    assert text.end == 13


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        TextStream(StopRule(("\n\n", "")))
    with pytest.raises(UsageError, match="empty"):
        TextStream(StopRule(thought=Thought(">", "</think>", ("",))))
