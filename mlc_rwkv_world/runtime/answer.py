"""One answer as it grows: which token comes next, what text that gives, and when it is over.

An answer calls no engine. Whoever has the logits pushes them in:

    token = answer.choose(logits)
    show(answer.take(token))
    if answer.finish_reason is None:
        logits = engine.decode(token, state)

A conversation drives one so, and a server many at once, with `choose_all`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mlc_rwkv_world.artifact.stopping import AT_THE_END, StopRule
from mlc_rwkv_world.errors import RwkvWorldError, UsageError
from mlc_rwkv_world.runtime.sampler import Logits, Mask, Sampler, Scores, score
from mlc_rwkv_world.runtime.sampler import choose_all as choose_tokens
from mlc_rwkv_world.runtime.text import TextStream
from mlc_rwkv_world.tokenizer import WorldTokenizer

# A stop string or a stop id came; or as many tokens as were asked for.
FinishReason = Literal["stop", "length"]


class Answer:
    """Chooses tokens by `sampler`, and turns those that are taken into text.

    It ends where the rule `stop` says, a token of its ids giving no text, or after `max_tokens`
    tokens. A thought is part of the text. The random numbers and penalties of the sampler go on
    where they are; `Sampler.forget` begins afresh.
    """

    def __init__(
        self,
        tokenizer: WorldTokenizer,
        sampler: Sampler,
        *,
        stop: StopRule = AT_THE_END,
        max_tokens: int | None = None,
        top_scores: int | None = None,
    ) -> None:
        """With `top_scores`, `scores` holds each choice's log-probability and so many others'."""
        check_max_tokens(max_tokens)
        self.text = TextStream(stop)
        self.finish_reason: FinishReason | None = None
        self.tokens_taken = 0
        self.scores: Scores | None = None
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._rule = stop
        self._max_tokens = max_tokens
        self._top_scores = top_scores

    @property
    def unwritten(self) -> str:
        """What would end the thought in which the text stands; nothing where it is in none."""
        thought = self._rule.thought
        if thought is None or not self.text.in_thought:
            return ""
        return thought.rest(begun=self.text.end > 0)

    def choose(self, logits: Logits, mask: Mask | None = None) -> int:
        """The next token by the logits, float32 [V]; raises what `Sampler.choose` does."""
        token = self._sampler.choose(logits, mask)
        if self._top_scores is not None:
            _score([self], [token], logits[np.newaxis])
        return token

    def take(self, token: int) -> str:
        """The text that `token` completes, which may be none; sets `finish_reason` at the end.

        What may yet become a stop string, and the bytes of an unfinished character, are held
        back. Raises VocabularyError for an id without a token, and UsageError behind the end.
        """
        if self.finish_reason is not None:
            raise UsageError("The answer has ended and takes no more tokens. Begin another.")
        data = self._tokenizer.id_to_bytes(token)
        if token in self._rule.ids:
            self.finish_reason = "stop"
            return self.text.finish()
        self._sampler.take(token)
        self.tokens_taken += 1
        piece = self.text.push(data)
        if self.text.stopped:
            self.finish_reason = "stop"
        elif self.tokens_taken == self._max_tokens:
            self.finish_reason = "length"
            piece += self.text.finish()
        return piece


def choose_all(
    answers: Sequence[Answer],
    logits: Logits,
    masks: Sequence[Mask | None] = (),
    launcher: int = 0,
) -> list[int | RwkvWorldError]:
    """What `choose` gives each of `answers` by its row of `logits`, float32 [B, V].

    Where it would raise an error, that stands in the token's place: the others go on. With an
    engine's `launcher` the rows are shared between its threads.
    """
    tokens = choose_tokens([answer._sampler for answer in answers], logits, masks, launcher)
    rows = [
        row
        for row, (answer, token) in enumerate(zip(answers, tokens, strict=True))
        if answer._top_scores is not None and isinstance(token, int)
    ]
    if rows:
        chosen = [token for row in rows if isinstance(token := tokens[row], int)]
        _score([answers[row] for row in rows], chosen, logits[rows])
    return tokens


def check_max_tokens(max_tokens: int | None) -> None:
    """Raise UsageError for a limit that leaves no token."""
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; give at least 1.")


def _score(answers: Sequence[Answer], tokens: Sequence[int], logits: Logits) -> None:
    top = [answer._top_scores or 0 for answer in answers]
    usable = min(answer._tokenizer.token_count for answer in answers) + 1
    found = score(tokens, logits, top, usable)
    for answer, scores in zip(answers, found, strict=True):
        answer.scores = scores
