"""Conversations with a World model."""

from __future__ import annotations

from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.chat.session import Chat
from mlc_rwkv_world.chat.thoughts import Piece

__all__ = ["Chat", "Piece", "Template"]
