"""Run an artifact: engine, state, sampling. Needs TVM's runtime, not its compiler."""

from __future__ import annotations

# First of all: it says so where the package has no compiled modules.
import mlc_rwkv_world.tokenizer  # noqa: F401
from mlc_rwkv_world.runtime.answer import Answer
from mlc_rwkv_world.runtime.engine import Engine, load
from mlc_rwkv_world.runtime.generate import Generation, Speed
from mlc_rwkv_world.runtime.sampler import Sampler, Sampling
from mlc_rwkv_world.runtime.state import State

__all__ = ["Answer", "Engine", "Generation", "Sampler", "Sampling", "Speed", "State", "load"]
