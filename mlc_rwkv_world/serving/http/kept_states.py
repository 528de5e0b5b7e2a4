"""/v1/states and /v1/tuned_states: what prompts can begin from."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mlc_rwkv_world.errors import StateError
from mlc_rwkv_world.runtime.tuned_file import is_torch_file
from mlc_rwkv_world.serving import conversation
from mlc_rwkv_world.serving.http.bodies import StateBody
from mlc_rwkv_world.serving.http.chat import turns_of
from mlc_rwkv_world.serving.http.completions import prompts_of
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.http.service import Service
from mlc_rwkv_world.serving.requests import Event, Failed, Finished, PromptState, Request

# Not below /v1/states, where every name is a state's.
UPLOAD = "/v1/tuned_states"


async def make(service: Service, body: StateBody) -> dict[str, Any]:
    """Read a prompt or messages, and keep what the model then remembers."""
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise Fault(400, "Give either a prompt or messages.", param="prompt")
    origin = service.origin(body.state)
    marks: tuple[int, ...] = ()
    if body.prompt is not None:
        ids = (await prompts_of(service, body.prompt))[0]
    else:
        written = conversation.write(
            turns_of(body.messages or ()), service.template, begins=origin is None, asks=False
        )
        prompt = conversation.encode(service.engine, written)
        ids, marks = prompt.ids, prompt.marks
        service.check_prompt(len(ids))
    request = Request(
        ids,
        service.sampling,
        max_tokens=0,
        marks=marks,
        origin=origin,
        wants_state=True,
        deadline=service.deadline(),
    )
    found: asyncio.Queue[Event] = asyncio.Queue()
    (ticket,) = service.submit([request], lambda _, event: found.put_nowait(event))
    state: PromptState | None = None
    try:
        while True:
            event = await found.get()
            if isinstance(event, PromptState):
                state = event
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Finished):
                break
    finally:
        ticket.cancel()
    if state is None:
        raise Fault(408, "The prompt was not read in time.", code="timeout")
    return service.states.keep(state.content, state.tokens)


async def delete(service: Service, name: str) -> dict[str, Any]:
    """Forget a state, and what a cache has from it."""
    service.states.delete(name)
    cache = service.batch.cache
    if cache is not None:
        await service.on_engine(lambda: cache.forget(name))
    return {"id": name, "object": "state.deleted", "deleted": True}


async def upload(service: Service, data: bytes) -> dict[str, Any]:
    """Keep a tuned state that a client has sent."""

    def read() -> np.ndarray[Any, np.dtype[np.float32]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "uploaded.pth"
            path.write_bytes(data)
            if not is_torch_file(path):
                raise StateError("What was sent is no tuned state. Send a .pth of state tuning.")
            return service.engine.new_state().read_file(path).state

    try:
        content = await asyncio.to_thread(read)
    except StateError as error:
        raise Fault(400, str(error), code="bad_state") from None
    return service.states.keep(content, 0)
