"""What comes of the events of an answer: pieces of text, with their tokens' scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mlc_rwkv_world.artifact.stopping import Thought
from mlc_rwkv_world.chat.thoughts import Parting
from mlc_rwkv_world.serving.requests import Event, Failed, Finished, PromptScores, Token, Usage

# OpenAI has no word for an answer whose time was over; it was cut off all the same.
_REASONS = {"stop": "stop", "length": "length", "timeout": "length", "cancelled": "stop"}


@dataclass
class Delta:
    """What is new: text of the answer and of its thought, and the tokens that it consists of."""

    text: str = ""
    thought: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None


class Choice:
    """One answer of a request, from the events of its ticket."""

    def __init__(self, *, parts: bool, thought: Thought | None = None) -> None:
        """With `parts`, the text is a chat's: the thought is parted from the answer."""
        self.usage = Usage(0)
        self.prompt_scores: PromptScores | None = None
        self.over = False
        self._parting = Parting(thought) if parts else None
        # Tokens whose text has not come.
        self._tokens: list[Token] = []

    def push(self, event: Event) -> Iterator[Delta]:
        """What comes of an event; raises the error of an answer that failed."""
        if isinstance(event, PromptScores):
            self.prompt_scores = event
        elif isinstance(event, Token):
            self._tokens.append(event)
            if event.text:
                yield from self._text(event.text)
        elif isinstance(event, Finished):
            self.usage, self.over = event.usage, True
            # What is left over belongs to the string that ended the answer.
            yield Delta(finish_reason=_REASONS[event.reason])
        elif isinstance(event, Failed):
            self.over = True
            raise event.error

    def _text(self, text: str) -> Iterator[Delta]:
        tokens, self._tokens = self._tokens, []
        if self._parting is None:
            yield Delta(text=text, tokens=tokens)
            return
        delta = Delta(tokens=tokens)
        for piece in self._parting.part(text):
            if piece.is_thought:
                delta.thought += piece.text
            else:
                delta.text += piece.text
        if delta.text or delta.thought:
            yield delta
        else:
            # Space before the answer, or a mark: its scores come with what follows.
            self._tokens = tokens
