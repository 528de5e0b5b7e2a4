"""Packs and runs the GPU's benchmark on the emulated GPU, in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


def run(folder: str, models: str, *arguments: str) -> tuple[bool, str]:
    """Packs the short twins of some models and runs them; whether all was right, and the table."""
    import gpu_pack
    import gpu_run

    full = gpu_pack.config_of
    gpu_pack.config_of = lambda *given: gpu_pack.twin_of(full(*given))
    gpu_pack.CHECKED_VOCABULARY = 256
    sizes = {"chunk": 256, "batch": 2, "target": "cuda -arch=sm_90", "formats": "q4f16_1"}
    gpu_pack.models(Path(folder), argparse.Namespace(models=models, **sizes))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        options = gpu_run.parser().parse_args([folder, *arguments])
        passed = gpu_run.run(options, gpu_run.open_device())
    return passed, said.getvalue()
