"""Run an artifact: engine, state, sampling. Needs TVM's runtime, not its compiler."""

from __future__ import annotations

# First of all: it says so where the package has no compiled modules.
import mlc_rwkv_world.tokenizer  # noqa: F401
from mlc_rwkv_world.runtime.answer import Answer
from mlc_rwkv_world.runtime.engine import Engine, load
from mlc_rwkv_world.runtime.generate import Event, Generation, Speed
from mlc_rwkv_world.runtime.sampler import Sampler, Sampling
from mlc_rwkv_world.runtime.state import State
from mlc_rwkv_world.runtime.stream import Stream

__all__ = [
    "Answer",
    "Engine",
    "Event",
    "Generation",
    "Sampler",
    "Sampling",
    "Speed",
    "State",
    "Stream",
    "load",
]
