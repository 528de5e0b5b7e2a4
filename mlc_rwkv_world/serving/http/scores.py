"""Scores in OpenAI's two dialects: of chats, and of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlc_rwkv_world.runtime.sampler import Scores
from mlc_rwkv_world.tokenizer import WorldTokenizer


def spelled(tokenizer: WorldTokenizer, token: int) -> str:
    """A token as text; one that is none for itself is written bytes:\\xe4\\xbd."""
    data = tokenizer.id_to_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def of_chat(tokenizer: WorldTokenizer, token: int, scores: Scores, top: int) -> dict[str, Any]:
    """An entry of a chat's `logprobs`."""
    return {
        **_entry(tokenizer, token, scores.log_probability),
        "top_logprobs": [_entry(tokenizer, *one) for one in scores.top[:top]],
    }


class CompletionScores:
    """The `logprobs` of a completion: lists that grow with its tokens."""

    def __init__(self, tokenizer: WorldTokenizer, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._stream = tokenizer.stream()
        self._offset = 0

    def lists(self, tokens: Sequence[tuple[int, Scores | None]]) -> dict[str, list[Any]]:
        """The lists of these tokens, which follow those before."""
        lists: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token, scores in tokens:
            lists["tokens"].append(spelled(self._tokenizer, token))
            lists["text_offset"].append(self._offset)
            self._offset += len(self._stream.push(token))
            lists["token_logprobs"].append(None if scores is None else scores.log_probability)
            lists["top_logprobs"].append(None if scores is None else self._likely(token, scores))
        return lists

    def _likely(self, token: int, scores: Scores) -> dict[str, float]:
        likely = {spelled(self._tokenizer, one): value for one, value in scores.top[: self._top]}
        # OpenAI's lists hold the token itself, even beyond their length.
        likely[spelled(self._tokenizer, token)] = scores.log_probability
        return likely


def _entry(tokenizer: WorldTokenizer, token: int, value: float) -> dict[str, Any]:
    data = tokenizer.id_to_bytes(token)
    return {"token": spelled(tokenizer, token), "logprob": value, "bytes": list(data)}
