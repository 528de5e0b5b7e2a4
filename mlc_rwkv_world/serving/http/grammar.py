"""Answers in a form that is asked for, by llguidance: JSON, a schema, an expression, a grammar."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.sampler import Mask
from mlc_rwkv_world.serving.http.bodies import ResponseFormat
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.requests import Guide
from mlc_rwkv_world.tokenizer import END_OF_TEXT, WorldTokenizer

# Small models fill an answer with blank lines where they may.
_JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


async def guide(engine: Engine, form: ResponseFormat | None) -> Callable[[], Guide] | None:
    """What makes a guide for each answer; None where any text will do.

    Raises a Fault for a form that cannot be, and where llguidance is not installed.
    """
    if form is None or form.type == "text":
        return None
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise Fault(
            400,
            f"response_format {form.type!r} needs what `pip install 'mlc-rwkv-world[grammar]'` "
            "installs on the server.",
            param="response_format",
            code="unsupported",
        ) from None
    words = _words(engine.tokenizer, engine.vocab_size)
    return await asyncio.to_thread(_compiled, words, form)


def _compiled(words: Any, form: ResponseFormat) -> Callable[[], Guide]:
    from llguidance import LLMatcher

    grammar = _grammar(form)
    # Compiled once, and copied for each answer.
    matcher = LLMatcher(words, grammar)
    if matcher.is_error():
        reason = str(matcher.get_error()).splitlines()[0][:300]
        raise Fault(400, f"This form cannot be followed: {reason}", param="response_format")
    return lambda: _Matcher(matcher.deep_copy(), words.vocab_size)


def _grammar(form: ResponseFormat) -> str:
    from llguidance import LLMatcher

    if form.type == "json_object":
        return str(LLMatcher.grammar_from_json_schema('{"type": "object"}', _JSON))
    if form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise _missing("json_schema.schema")
        return str(LLMatcher.grammar_from_json_schema(json.dumps(form.json_schema.schema_), _JSON))
    if form.type == "regex":
        if form.regex is None:
            raise _missing("regex")
        return str(LLMatcher.grammar_from_regex(form.regex))
    if form.grammar is None:
        raise _missing("grammar")
    return str(LLMatcher.grammar_from_lark(form.grammar))


def _missing(name: str) -> Fault:
    return Fault(400, f"response_format has no {name}.", param=f"response_format.{name}")


class _Matcher:
    """A guide that llguidance gives."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._words = -(-vocab_size // 32)

    def mask(self) -> Mask | None:
        """Which ids may come next; the end of text alone once the form is complete."""
        data = self._matcher.compute_bitmask()
        mask = np.zeros(self._words, np.uint32)
        found = np.frombuffer(data, np.uint32)
        mask[: len(found)] = found[: self._words]
        return mask

    def take(self, token: int) -> None:
        """Move on behind `token`."""
        self._matcher.consume_token(token)


class _Vocabulary:
    """The tokens, as llguidance asks for them."""

    eos_token_id = END_OF_TEXT
    bos_token_id = None

    def __init__(self, tokenizer: WorldTokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        known = tokenizer.token_count
        self.tokens = [tokenizer.id_to_bytes(i) if i <= known else b"" for i in range(size)]
        self.tokens[END_OF_TEXT] = b"<|endoftext|>"
        self.special_token_ids = [END_OF_TEXT]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text)


@lru_cache(maxsize=1)
def _words(tokenizer: WorldTokenizer, size: int) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, size)))
