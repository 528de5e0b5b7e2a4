"""The host's engine with a recurrent model: settings that it takes wrongly by default, and text.

Everything here is for `rwkv_world` alone. `docs/plugin.md` lists the symptoms.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, MODEL_TYPE

# A state cannot be cut back to a prefix, a step can not be turned into a prefill, and each entry
# of the history is a whole state.
ENGINE_SETTINGS: dict[str, Any] = {
    "prefix_cache_mode": "disable",
    "prefill_mode": "chunked",
    "max_history_size": 1,
}
_FINGERPRINT = ("User: hi\n\nAssistant:", [24281, 59, 4571, 261, 5585, 41693, 59])
_LAST_TOKEN = 65529


def add_engine_defaults(config: ModuleType) -> None:
    """Corrects the settings in the one place through which they reach the engine."""
    engine_config = config.EngineConfig
    missing = set(ENGINE_SETTINGS) - {field.name for field in dataclasses.fields(engine_config)}
    if missing:
        raise TypeError(f"EngineConfig has no field {', '.join(sorted(missing))}")
    original = engine_config.asjson
    if hasattr(original, "rwkv_world"):
        return

    @functools.wraps(original)
    def asjson(self: Any) -> str:
        if is_world_artifact(self.model):
            self = dataclasses.replace(self, **ENGINE_SETTINGS)
        return str(original(self))

    asjson.rwkv_world = True  # type: ignore[attr-defined]
    engine_config.asjson = asjson


def is_world_artifact(folder: Any) -> bool:
    """Whether the folder holds the configuration of one of our models."""
    try:
        content = json.loads((Path(folder) / CHAT_CONFIG).read_text(encoding="utf-8"))
        return bool(content["model_type"] == MODEL_TYPE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def add_text_streamer(tokenizers: ModuleType) -> None:
    """Streams of World tokens are turned into text by our tokenizer."""
    original: Any = tokenizers.TextStreamer
    if not issubclass(original, _Choosing):
        choosing = type("TextStreamer", (_Choosing,), {"original": original})
        setattr(tokenizers, original.__name__, choosing)


class _Choosing:
    """Makes the host's streamer, or ours where the tokenizer is World's."""

    original: Any

    def __new__(cls, tokenizer: Any) -> Any:
        text, ids = _FINGERPRINT
        if list(tokenizer.encode(text)) == ids:
            return WorldStreamer()
        return cls.original(tokenizer)


class WorldStreamer:
    """The host's TextStreamer for bytes that need not end where a character does.

    The host's expects of a tokenizer that an unfinished character comes out as U+FFFD, and holds
    it back then; its World tokenizer gives bytes.
    """

    def __init__(self) -> None:
        from mlc_rwkv_world.tokenizer import WorldTokenizer

        self._stream = WorldTokenizer.default().stream()

    def put(self, delta_tokens: Sequence[int]) -> str:
        """The text that these tokens complete. Ids without a token stand for nothing."""
        return "".join(self._stream.push(i) for i in delta_tokens if 0 < i <= _LAST_TOKEN)

    def finish(self) -> str:
        """What is left: an unfinished character as U+FFFD."""
        return str(self._stream.finish())


def add_chat_engine(chat: ModuleType) -> None:
    """`mlc_llm chat` runs World models with the engine whose text comes from Python.

    Its own engine turns tokens into text in C++, where an unfinished character ends the stream.
    """
    original: Any = chat.JSONFFIEngine
    if hasattr(original, "rwkv_world"):
        return

    @functools.wraps(original, updated=())
    def engine(model: str, *args: Any, **kwargs: Any) -> Any:
        chosen: Any = chat.MLCEngine if is_world_artifact(model) else original
        return chosen(model, *args, **kwargs)

    engine.rwkv_world = True  # type: ignore[attr-defined]
    setattr(chat, original.__name__, engine)
