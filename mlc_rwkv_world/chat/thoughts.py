"""What of a model's text is its thought, and what its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mlc_rwkv_world.artifact.stopping import Thought


class Piece(NamedTuple):
    """A piece of what a model says."""

    text: str
    is_thought: bool = False


class Parting:
    """Parts a text that comes in pieces, none of which cuts the mark that ends its thought.

    The marks are left out, and so is the space around a thought and before an answer.
    """

    def __init__(self, thought: Thought | None) -> None:
        self._thought = thought
        self._opening = thought.opening if thought is not None else ""
        self._begun = False
        self._space = ""

    def part(self, text: str) -> Iterator[Piece]:
        """What comes with `text`."""
        thought = self._thought
        if thought is not None:
            before, mark, after = text.partition(thought.mark)
            if not thought.closing and before:
                # The model left the mark out, and answers.
                before, mark, after = "", thought.mark, text
            yield from self._thinking(before)
            if not mark:
                return
            self._thought, self._begun, self._space, text = None, False, "", after
        shown = text if self._begun else text.lstrip()
        if shown:
            self._begun = True
            yield Piece(shown)

    def _thinking(self, text: str) -> Iterator[Piece]:
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
            if text:
                text, self._opening = text.removeprefix(self._opening).lstrip(), ""
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._begun = True
            yield Piece(shown, is_thought=True)
