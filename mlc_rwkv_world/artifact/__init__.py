"""What a build leaves on disk: its layout, index and configuration, and how it is found."""

from __future__ import annotations

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.index import ParameterIndex, ShardRecord, TensorRecord
from mlc_rwkv_world.artifact.metadata import LibraryMetadata
from mlc_rwkv_world.artifact.search import Found, find

__all__ = [
    "ChatConfig",
    "Found",
    "LibraryMetadata",
    "ParameterIndex",
    "ShardRecord",
    "TensorRecord",
    "find",
]
