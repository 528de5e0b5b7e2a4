"""Conversations with a World model."""

from __future__ import annotations

from mlc_rwkv_world.chat.session import Chat
from mlc_rwkv_world.chat.template import Template

__all__ = ["Chat", "Template"]
