"""Checkpoints: finding or downloading one, telling what it is, reading its tensors safely."""

from mlc_rwkv_world.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mlc_rwkv_world.checkpoint.folder import find_vocabulary
from mlc_rwkv_world.checkpoint.hub import fetch
from mlc_rwkv_world.checkpoint.shape import ModelShape
from mlc_rwkv_world.checkpoint.source import find_model, resolve_source

__all__ = [
    "Checkpoint",
    "ModelShape",
    "fetch",
    "find_model",
    "find_vocabulary",
    "open_checkpoint",
    "resolve_source",
]
