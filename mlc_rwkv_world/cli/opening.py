"""Opening a model for a command: what was passed over is said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlc_rwkv_world import console

if TYPE_CHECKING:
    from mlc_rwkv_world.runtime import Engine


def load(
    model: str | Path,
    device: str = "auto",
    *,
    model_lib: str | Path | None = None,
    threads: int | None = None,
) -> Engine:
    """`runtime.load`, with the engine's notes on stderr."""
    from mlc_rwkv_world import runtime

    engine = runtime.load(model, device, model_lib=model_lib, threads=threads)
    for note in engine.notes:
        console.complain(f"note: {note}")
    return engine
