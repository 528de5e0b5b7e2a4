"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.stopping import StopRule
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime.sampler import Scores
from mlc_rwkv_world.serving.http import grammar
from mlc_rwkv_world.serving.http.answering import AnswerResponse, Answers
from mlc_rwkv_world.serving.http.bodies import CompletionBody, refuse_what_is_not_offered
from mlc_rwkv_world.serving.http.choices import Choice, Delta
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.http.scores import CompletionScores
from mlc_rwkv_world.serving.http.service import Service, new_name
from mlc_rwkv_world.serving.requests import Request

# Of an answer whose length is not given, as OpenAI has it.
_USUAL_LENGTH = 16


async def answer(service: Service, body: CompletionBody) -> AnswerResponse:
    """Go on with one or several prompts."""
    service.check_model(body.model)
    refuse_what_is_not_offered(body)
    service.check_top_scores(body.logprobs, "logprobs")
    prompts = await prompts_of(service, body.prompt)
    limit = service.max_tokens(body.max_tokens, _USUAL_LENGTH)
    if limit == 0 and not body.echo:
        raise Fault(400, "max_tokens is 0; give at least 1, or echo.", param="max_tokens")
    guide = await grammar.guide(service.engine, body.response_format)
    request = Request(
        prompts[0],
        service.sampling_of(body),
        stop=StopRule(service.stops(body)),
        max_tokens=limit,
        top_scores=body.logprobs,
        score_prompt=bool(body.echo) and body.logprobs is not None,
        guide=guide,
        origin=service.origin(body.state),
        cached=body.cache is not False,
        deadline=service.deadline(),
    )
    count = service.count_of_choices(body)
    requests = [
        replace(request, ids=ids, seed=seed)
        for ids in prompts
        for seed in service.seeds(body, count)
    ]
    answers = Answers(service, requests, partial(Choice, parts=False))
    repeated = prompts if body.echo else []
    options = body.stream_options
    return AnswerResponse(
        answers,
        _Form(service, body.logprobs, repeated, count),
        stream=bool(body.stream),
        prompts=len(prompts),
        include_usage=options is not None and bool(options.include_usage),
    )


async def prompts_of(
    service: Service, prompt: str | list[str] | list[int] | list[list[int]]
) -> list[npt.NDArray[np.int32]]:
    """The ids of one or several prompts; a Fault where there are too many, or one is too long."""
    given: list[Any]
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        given = [prompt]
    else:
        given = cast("list[Any]", prompt)
    if not 1 <= len(given) <= service.limits.prompts:
        raise Fault(
            400,
            f"{len(given)} prompts; give 1 to {service.limits.prompts}.",
            param="prompt",
        )
    most = service.engine.tokenizer.token_count
    found = []
    for one in given:
        ids = await service.encode(one) if isinstance(one, str) else np.array(one, np.int32)
        if len(ids) == 0:
            raise UsageError("The prompt is empty. Give at least one token.")
        if int(ids.max()) > most:
            raise Fault(400, f"There is no token {int(ids.max())}.", param="prompt")
        service.check_prompt(len(ids))
        found.append(ids)
    return found


class _Form:
    """Chunks and bodies of completions; choice i belongs to prompt i // `count`."""

    def __init__(
        self,
        service: Service,
        top: int | None,
        repeated: Sequence[npt.NDArray[np.int32]],
        count: int,
    ) -> None:
        self._tokenizer = service.engine.tokenizer
        self._top = top
        self._repeated = repeated
        self._count = count
        self._scores: dict[int, CompletionScores] = {}
        self._begun: set[int] = set()
        self._head = {
            "id": new_name("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
        }

    def opening(self, index: int) -> None:
        return None

    def chunk(self, index: int, choice: Choice, delta: Delta) -> dict[str, Any]:
        return {**self._head, "choices": [self._choice(index, choice, [delta])]}

    def last(self, usage: dict[str, Any] | None, timings: dict[str, Any]) -> dict[str, Any] | None:
        if usage is None:
            return None
        return {**self._head, "choices": [], "usage": usage, "timings": timings}

    def whole(
        self, choices: Sequence[tuple[Choice, list[Delta]]], usage: dict[str, Any]
    ) -> dict[str, Any]:
        found = [self._choice(i, *one) for i, one in enumerate(choices)]
        return {**self._head, "choices": found, "usage": usage}

    def _choice(self, index: int, choice: Choice, deltas: Sequence[Delta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        tokens: list[tuple[int, Scores | None]] = [
            (token.id, token.scores) for delta in deltas for token in delta.tokens
        ]
        if self._repeated and index not in self._begun:
            prompt = self._repeated[index // self._count]
            text = self._tokenizer.decode(prompt) + text
            scores = () if choice.prompt_scores is None else choice.prompt_scores.scores
            before = zip(prompt.tolist(), (None, *scores), strict=False)
            tokens = [*before, *tokens]
        self._begun.add(index)
        logprobs = None
        if self._top is not None:
            if index not in self._scores:
                self._scores[index] = CompletionScores(self._tokenizer, self._top)
            logprobs = self._scores[index].lists(tokens)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": deltas[-1].finish_reason if deltas else None,
        }
