"""Many answers at once: a batching engine with a cache of states, and an OpenAI server over it."""

from __future__ import annotations

from mlc_rwkv_world.serving.batch import BatchEngine
from mlc_rwkv_world.serving.cache import StateCache
from mlc_rwkv_world.serving.requests import Busy, Failed, Finished, Origin, Request, Token

__all__ = [
    "BatchEngine",
    "Busy",
    "Failed",
    "Finished",
    "Origin",
    "Request",
    "StateCache",
    "Token",
]
