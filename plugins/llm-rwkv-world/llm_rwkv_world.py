"""A plugin of `llm`: a model for each artifact that this user built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import llm
from pydantic import Field

from mlc_rwkv_world import Chat, Engine, load
from mlc_rwkv_world.artifact.registry import registered

_SAMPLING = ("temperature", "top_p", "top_k")


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Tell `llm` of each artifact, the latest of a name."""
    folders = {folder.name: folder for folder in reversed(registered())}
    for name, folder in folders.items():
        register(RwkvWorld(name, folder))


@lru_cache(maxsize=1)
def _engine(folder: Path) -> Engine:
    return load(folder)


class RwkvWorld(llm.Model):
    """One artifact."""

    can_stream = True

    class Options(llm.Options):
        """What of sampling can be said; the model's own where it is not."""

        temperature: float | None = Field(default=None, ge=0)
        top_p: float | None = Field(default=None, ge=0, le=1)
        top_k: int | None = Field(default=None, ge=0)
        seed: int | None = Field(default=None, ge=0)
        max_tokens: int | None = Field(default=None, ge=1)

    def __init__(self, name: str, folder: Path) -> None:
        self.model_id = f"rwkv-world/{name}"
        self._folder = folder

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """Yield the answer to the prompt, after what the conversation holds."""
        engine, options = _engine(self._folder), prompt.options
        chat = Chat(
            engine,
            sampling=engine.sampling.changed({name: getattr(options, name) for name in _SAMPLING}),
            seed=options.seed,
            max_tokens=options.max_tokens,
            system=prompt.system or None,
        )
        for earlier in conversation.responses if conversation is not None else ():
            chat.read(earlier.prompt.prompt, earlier.text())
        yield from chat.ask(prompt.prompt)
