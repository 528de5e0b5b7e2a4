"""In which order prompts are read, and how much of them between two tokens of the others.

Order: what has the least left to read comes first. So that a long prompt comes too, each token
that is read of any prompt since it was asked brings it half a token nearer: no prompt is passed
by more than twice its own length. That is a fixed number for each prompt, its *rank*: half of
what had been read when it came, plus what is left.

Amount: a step decodes one token for all that answer, and then reads a piece that takes at most
two and a half such steps, so that nobody's next token is later than four, though the step behind
a piece finds the caches full of others' numbers and takes longer, of which little is learnt. What
is usual depends on how many answer, and is learnt for each number of them; where that changes, a
piece's size changes as a step does. Else it follows the time that the last full piece took: down by
a half at most, and up by a quarter.
"""

from __future__ import annotations

_AGEING = 0.5
# Steps of decoding that a piece may take.
_STEPS = 2.5
# How far a step moves what is held to be usual; and a longer one, behind a piece.
_LEARNT, _LEARNT_BEHIND = 0.3, 0.01
_FIRST_PIECE = 16
_GROWTH = 1.25
# Part of its size from which on a piece is full; the end of a prompt says little.
_FULL = 0.8


class Clock:
    """Counts what was read of all prompts, by which they age."""

    def __init__(self) -> None:
        self._read = 0

    def rank(self, left: int, asked_at: int) -> float:
        """Prompts are read in the order of this; `left` tokens remain of one."""
        return left + _AGEING * asked_at

    @property
    def now(self) -> int:
        """Tokens read until now."""
        return self._read

    def read(self, tokens: int) -> None:
        """So many tokens more were read."""
        self._read += tokens


class Pace:
    """How many tokens of prompts a step may read, learnt from how long steps take."""

    def __init__(self, most: int) -> None:
        """`most` are read at once where nobody waits for a token."""
        self.most = most
        self._size = float(min(_FIRST_PIECE, most))
        # Seconds of a usual step, by how many answer; and how many did last.
        self._decode: dict[int, float] = {}
        self._count = 0
        self._behind_a_piece = False

    def decoded(self, seconds: float, count: int) -> None:
        """A step of decoding for `count` that answer has taken so long."""
        before = self._decode.get(count, seconds)
        longer_behind_a_piece = self._behind_a_piece and seconds > before
        share = _LEARNT_BEHIND if longer_behind_a_piece else _LEARNT
        usual = before + share * (seconds - before)
        if count != self._count and self._count in self._decode:
            scaled = self._size * usual / max(self._decode[self._count], 1e-9)
            self._size = min(float(self.most), scaled)
        self._decode[count], self._count = usual, count
        self._behind_a_piece = False

    def read(self, tokens: int, seconds: float) -> None:
        """A piece of so many tokens has taken so long."""
        self._behind_a_piece = True
        if self._count not in self._decode:
            return
        fits = tokens * _STEPS * self._decode[self._count] / max(seconds, 1e-9)
        if fits < tokens:
            # One that was late by chance does not make the next ones tiny.
            self._size = min(self._size, max(fits, self._size / 2))
        elif tokens >= _FULL * int(self._size):
            self._size = max(self._size, min(fits, _GROWTH * tokens + 1))

    def tokens(self, *, others_decode: bool) -> int:
        """The size of the next piece, at least 1."""
        return max(1, min(int(self._size), self.most)) if others_decode else self.most
