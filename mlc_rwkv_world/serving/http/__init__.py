"""The OpenAI interface over a batching engine. It needs what the extra `serve` installs."""

from __future__ import annotations
