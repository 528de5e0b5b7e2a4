"""The bodies of requests, as OpenAI's interface has them and with RWKV's own options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlc_rwkv_world.serving.http.faults import Fault

Id = Annotated[int, Field(ge=0, lt=1 << 31)]


class Body(BaseModel):
    """JSON types are taken as they are: "5" is no number. Fields that nobody knows are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """The schema of an answer."""

    name: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What form an answer has: `regex` and `grammar` (of llguidance) beside OpenAI's own."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    regex: str | None = None
    grammar: str | None = None


class Sampled(Body):
    """What both kinds of requests for answers have."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    penalty_decay: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # A name that POST /v1/states gave: the prompt continues what that has read.
    state: str | None = None
    # Whether states of earlier requests may serve this one, and its own later ones.
    cache: bool | None = None
    user: str | None = None


class TextPart(Body):
    """A part of a message; only text is offered."""

    type: str
    text: str | None = None


class Message(Body):
    """One message; `reasoning_content` is what an assistant thought before it."""

    role: str
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None
    function_call: Any = None

    @property
    def text(self) -> str:
        """The text of all parts."""
        if self.tool_calls or self.function_call:
            raise Fault(400, "Tools are not offered.", param="messages", code="unsupported")
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        for part in self.content:
            if part.type != "text" or part.text is None:
                raise Fault(
                    400,
                    f"Parts of the type {part.type[:40]!r} are not offered; messages are text.",
                    param="messages",
                    code="unsupported",
                )
        return "".join(part.text or "" for part in self.content)


class TemplateOptions(Body):
    """How other servers are asked for thinking."""

    enable_thinking: bool | None = None


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    # A mode of thinking of the model's template: off, short or on.
    think: str | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: TemplateOptions | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    web_search_options: Any = None


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: str | list[str] | list[Id] | list[list[Id]]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class TokenizeBody(Body):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Id]


class StateBody(Body):
    """POST /v1/states: what a state is to have read."""

    model: str | None = None
    prompt: str | list[Id] | None = None
    messages: list[Message] | None = None
    state: str | None = None


class Error(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is none."""

    error: Error


def refuse_what_is_not_offered(body: ChatBody | CompletionBody) -> None:
    """Raise a Fault that says what is not offered, where a request asks for it."""
    asked = None
    if isinstance(body, ChatBody):
        if body.tools or body.functions:
            asked = "tools", "Tools and functions are"
        elif body.tool_choice not in (None, "none", "auto"):
            asked = "tool_choice", "Tools are"
        elif body.audio or (body.modalities or ["text"]) != ["text"]:
            asked = "modalities", "Audio and images are"
        elif body.web_search_options is not None:
            asked = "web_search_options", "Searching the web is"
    elif body.suffix:
        asked = "suffix", "Filling in before a suffix is"
    elif body.best_of not in (None, body.n or 1):
        asked = "best_of", "Choosing the best of several answers is"
    if asked is not None:
        raise Fault(400, f"{asked[1]} not offered.", param=asked[0], code="unsupported")
