"""`python -m mlc_rwkv_world doctor`: what is installed and built, and what mlc_llm knows of us."""

from __future__ import annotations

from collections.abc import Sequence

from mlc_rwkv_world import console
from mlc_rwkv_world.cli import status


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Prints the report; the exit status is 0 whatever is in it."""
    parser = status.Parser(
        prog=program, description="Show TVM, mlc_llm, what is registered with it, and built models."
    )
    return status.run(parser, lambda _options: _run(), argv)


def _run() -> int:
    from importlib import import_module

    from mlc_rwkv_world.artifact.identity import describe_library, describe_weights
    from mlc_rwkv_world.artifact.layout import PARAMS_DIR
    from mlc_rwkv_world.artifact.registry import registered
    from mlc_rwkv_world.artifact.search import libraries_in
    from mlc_rwkv_world.integration.report import report

    for line in report():
        console.say(line)
    try:
        version = str(import_module("tvm").__version__)
    except Exception:
        # The report has said so.
        version = None
    for folder in registered():
        params = folder / PARAMS_DIR
        console.say(f"artifact {describe_weights(params)}")
        for path in libraries_in(folder):
            console.say(f"  library {describe_library(path, params, version)}")
    return 0
