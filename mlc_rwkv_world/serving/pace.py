"""In which order prompts are read, and how much of them between two tokens of the others.

Order: what has the least left to read comes first. So that a long prompt comes too, each token
that is read of any prompt since it was asked brings it half a token nearer: no prompt is passed
by more than twice its own length. That is a fixed number for each prompt, its *rank*: half of
what had been read when it came, plus what is left.

Amount: a step decodes one token for all that answer, and then reads a piece that takes at most
three such steps, so that nobody's next token is later than four. How long a piece takes is a line,
fitted to the last ones.
"""

from __future__ import annotations

_AGEING = 0.5
# Steps of decoding that a piece may take.
_STEPS = 3.0
_FIRST_PIECE = 16
# How much of an older measurement remains beside a new one.
_MEMORY = 0.9


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
        self._decode = 0.0
        self._largest = 0
        # Decayed sums over pieces: 1, n, n^2, t, n*t for n tokens in t seconds.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def decoded(self, seconds: float) -> None:
        """A step of decoding has taken so long."""
        before = self._decode or seconds
        self._decode = 0.7 * before + 0.3 * seconds

    def read(self, tokens: int, seconds: float) -> None:
        """A piece of so many tokens has taken so long."""
        new = (1.0, tokens, tokens * tokens, seconds, tokens * seconds)
        old = self._sums
        self._sums = (
            _MEMORY * old[0] + new[0],
            _MEMORY * old[1] + new[1],
            _MEMORY * old[2] + new[2],
            _MEMORY * old[3] + new[3],
            _MEMORY * old[4] + new[4],
        )
        self._largest = max(self._largest, tokens)

    def tokens(self, *, others_decode: bool) -> int:
        """The size of the next piece, at least 1."""
        if not others_decode:
            return self.most
        if not self._largest or not self._decode:
            return min(_FIRST_PIECE, self.most)
        fixed, each = self._line()
        fits = int((_STEPS * self._decode - fixed) / each)
        # A line says little of what lies far beyond all that was measured.
        return max(1, min(fits, 2 * self._largest, self.most))

    def _line(self) -> tuple[float, float]:
        """Seconds that a piece takes, and each token of it."""
        count, n, nn, t, nt = self._sums
        spread = count * nn - n * n
        if spread > 1e-6 * count * nn:
            each = (count * nt - n * t) / spread
            fixed = (t - each * n) / count
            if each > 0 and fixed >= 0:
                return fixed, each
        return 0.0, t / n
