"""What a server grants, all of it: sizes, numbers and seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mlc_rwkv_world.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Raises UsageError for one below 1."""

    body_bytes: int = 16 << 20
    prompt_tokens: int = 1 << 17
    # Of one answer, and what one has that asks for none.
    answer_tokens: int = 1 << 15
    usual_answer_tokens: int = 4096
    choices: int = 16
    prompts: int = 128
    stop_strings: int = 16
    top_scores: int = 20
    # From when a request was read until its answer has ended.
    request_seconds: float = 3600.0
    connections: int = 1024
    # Until a connection has sent the head of a request, and until its body has come.
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    # For which a client may read nothing of what is sent to it.
    stall_seconds: float = 30.0
    # Between two requests of a connection.
    idle_seconds: float = 15.0
    # For answers to end once the server was told to.
    drain_seconds: float = 30.0
    states: int = 256
    state_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UsageError(f"The limit {field.name} is {value}; give more than 0.")
