"""When an answer is over, as data: a template declares it, and the runtime follows it."""

from __future__ import annotations

from dataclasses import dataclass

# The one id that every World vocabulary ends a text with.
_END_OF_TEXT = 0


@dataclass(frozen=True)
class Thought:
    """How a thought is written after a prompt that opens it.

    The model first writes `opening`, the rest of the mark that the prompt began. The thought ends
    with `closing`; where that is empty, the prompt holds the whole thought, and the answer follows
    `opening` at once. One of the `stop` strings inside a thought ends everything.
    """

    opening: str
    closing: str = ""
    stop: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """What the answer follows."""
        return self.closing or self.opening

    def rest(self, *, begun: bool) -> str:
        """What ends a thought that was cut off, `begun` or not."""
        closing = f"\n{self.closing}" if self.closing else ""
        return closing if begun else self.opening + closing


@dataclass(frozen=True)
class StopRule:
    """An answer ends with a token of `ids`, or before the first of `strings`.

    With a `thought` the strings count only after it and the space behind it: a thought may hold
    blank lines.
    """

    strings: tuple[str, ...] = ()
    ids: frozenset[int] = frozenset({_END_OF_TEXT})
    thought: Thought | None = None


# For texts that nothing but an end of text ends.
AT_THE_END = StopRule()
