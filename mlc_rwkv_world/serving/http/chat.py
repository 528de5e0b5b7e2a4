"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.artifact.templates import with_thinking
from mlc_rwkv_world.serving import conversation
from mlc_rwkv_world.serving.conversation import Turn
from mlc_rwkv_world.serving.http import grammar, scores
from mlc_rwkv_world.serving.http.answering import AnswerResponse, Answers
from mlc_rwkv_world.serving.http.bodies import ChatBody, Message, refuse_what_is_not_offered
from mlc_rwkv_world.serving.http.choices import Choice, Delta
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.http.service import Service, new_name
from mlc_rwkv_world.serving.requests import Request

# OpenAI's words for how much to think, as modes of templates.
_EFFORTS = {
    "none": "off",
    "minimal": "off",
    "low": "short",
    "medium": "on",
    "high": "on",
    "xhigh": "on",
}


async def answer(service: Service, body: ChatBody) -> AnswerResponse:
    """Answer a conversation."""
    service.check_model(body.model)
    refuse_what_is_not_offered(body)
    service.check_top_scores(body.top_logprobs, "top_logprobs")
    if body.top_logprobs and not body.logprobs:
        raise Fault(400, "top_logprobs is given without logprobs: true.", param="top_logprobs")
    guide = await grammar.guide(service.engine, body.response_format)
    template = _template(service, body)
    turns = turns_of(body.messages)
    origin = service.origin(body.state)
    guided = guide is not None
    written = conversation.write(turns, template, begins=origin is None, guided=guided)
    prompt = conversation.encode(service.engine, written)
    service.check_prompt(len(prompt.ids))
    rule = conversation.rule(template, turns, guided=guided)
    rule = replace(rule, strings=rule.strings + service.stops(body))
    wanted = body.max_completion_tokens, "max_completion_tokens"
    if wanted[0] is None:
        wanted = body.max_tokens, "max_tokens"
    limit = service.max_tokens(wanted[0], service.limits.usual_answer_tokens, wanted[1])
    if limit < 1:
        raise Fault(400, f"{wanted[1]} is {limit}; give at least 1.", param=wanted[1])
    top = (body.top_logprobs or 0) if body.logprobs else None
    count = service.count_of_choices(body)
    request = Request(
        prompt.ids,
        service.sampling_of(body),
        stop=rule,
        max_tokens=limit,
        marks=prompt.marks,
        top_scores=top,
        guide=guide,
        origin=origin,
        cached=body.cache is not False,
        deadline=service.deadline(),
    )
    requests = [replace(request, seed=seed) for seed in service.seeds(body, count)]
    answers = Answers(service, requests, partial(Choice, parts=True, thought=rule.thought))
    form = _Form(service, top)
    options = body.stream_options
    return AnswerResponse(
        answers,
        form,
        stream=bool(body.stream),
        include_usage=options is not None and bool(options.include_usage),
    )


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """The turns of a conversation; a Fault for what is not offered."""
    for message in messages:
        if message.role in ("tool", "function"):
            raise Fault(400, "Tools are not offered.", param="messages", code="unsupported")
    return [Turn(m.role, m.text, m.reasoning_content or "") for m in messages]


def _template(service: Service, body: ChatBody) -> Template:
    """The template, thinking as the request wants."""
    template = service.template
    if body.think is not None:
        return with_thinking(template, body.think)
    mode = None
    if body.reasoning_effort is not None:
        mode = _EFFORTS.get(body.reasoning_effort)
        if mode is None:
            raise Fault(
                400,
                f"reasoning_effort is {body.reasoning_effort[:40]!r}; give one of "
                f"{', '.join(_EFFORTS)}.",
                param="reasoning_effort",
            )
    elif body.chat_template_kwargs is not None:
        thinks = body.chat_template_kwargs.enable_thinking
        mode = None if thinks is None else "on" if thinks else "off"
    # It is a wish: a model that does not think answers all the same.
    return template if mode is None or mode not in template.modes else with_thinking(template, mode)


class _Form:
    """Chunks and bodies of a chat."""

    def __init__(self, service: Service, top: int | None) -> None:
        self._tokenizer = service.engine.tokenizer
        self._top = top
        self._head = {
            "id": new_name("chatcmpl"),
            "created": int(time.time()),
            "model": service.name,
        }

    def opening(self, index: int) -> dict[str, Any]:
        return self._chunk([_choice(index, {"role": "assistant", "content": ""}, None)])

    def chunk(self, index: int, choice: Choice, delta: Delta) -> dict[str, Any]:
        said: dict[str, Any] = {}
        if delta.thought:
            said["reasoning_content"] = delta.thought
        if delta.text:
            said["content"] = delta.text
        return self._chunk([_choice(index, said, delta.finish_reason, self._scores([delta]))])

    def last(self, usage: dict[str, Any] | None, timings: dict[str, Any]) -> dict[str, Any] | None:
        return None if usage is None else {**self._chunk([]), "usage": usage, "timings": timings}

    def whole(
        self, choices: Sequence[tuple[Choice, list[Delta]]], usage: dict[str, Any]
    ) -> dict[str, Any]:
        found = []
        for index, (_, deltas) in enumerate(choices):
            message: dict[str, Any] = {
                "role": "assistant",
                "content": "".join(delta.text for delta in deltas),
                "refusal": None,
            }
            if thought := "".join(delta.thought for delta in deltas):
                message["reasoning_content"] = thought
            found.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._scores(deltas),
                    "finish_reason": deltas[-1].finish_reason,
                }
            )
        return {**self._head, "object": "chat.completion", "choices": found, "usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}

    def _scores(self, deltas: Sequence[Delta]) -> dict[str, Any] | None:
        top = self._top
        if top is None:
            return None
        content = [
            scores.of_chat(self._tokenizer, token.id, token.scores, top)
            for delta in deltas
            for token in delta.tokens
            if token.scores is not None
        ]
        return {"content": content, "refusal": None}


def _choice(
    index: int, delta: dict[str, Any], reason: str | None, logprobs: Any = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
