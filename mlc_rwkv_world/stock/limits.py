"""How much the engine's functions take."""

from __future__ import annotations

# Tokens that they take in one call; the engine gives them whole prompts, and several at a time,
# whatever the chunk is that the library was built for.
ENGINE_PREFILL_TOKENS = 8192
