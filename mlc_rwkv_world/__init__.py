"""RWKV World language models on MLC and Apache TVM.

    import mlc_rwkv_world as rwkv

    artifact = rwkv.build("RWKV-4-World-0.4B", quantization="q4f16_1")
    engine = rwkv.load(artifact.folder)
    for text in rwkv.Chat(engine).ask("Hello!"):
        print(text, end="", flush=True)

Names are imported when they are first used, so that chatting never loads the compiler.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# When TVM is imported it makes a folder for data of its tests, in the user's home unless told
# otherwise; where no home is known it also asks in vain where caches go. Neither is ever used.
os.environ.setdefault("TEST_DATA_ROOT_PATH", "/tmp")
if os.path.expanduser("~") == "~":  # noqa: PTH111
    os.environ.setdefault("XDG_CACHE_HOME", os.devnull)

if TYPE_CHECKING:
    from mlc_rwkv_world.builder.assemble import Artifact as Artifact
    from mlc_rwkv_world.building import build as build
    from mlc_rwkv_world.chat import Chat as Chat
    from mlc_rwkv_world.errors import RwkvWorldError as RwkvWorldError
    from mlc_rwkv_world.runtime import Engine as Engine
    from mlc_rwkv_world.runtime import State as State
    from mlc_rwkv_world.runtime import load as load
    from mlc_rwkv_world.stock.registration import register as register
    from mlc_rwkv_world.tokenizer import WorldTokenizer as WorldTokenizer

_HOMES = {
    "Artifact": "builder.assemble",
    "build": "building",
    "Chat": "chat",
    "Engine": "runtime",
    "RwkvWorldError": "errors",
    "State": "runtime",
    "WorldTokenizer": "tokenizer",
    "load": "runtime",
    "register": "stock.registration",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
