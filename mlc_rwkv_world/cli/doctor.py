"""`python -m mlc_rwkv_world doctor`: what is installed and built, and what mlc_llm knows of us."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mlc_rwkv_world.cli import status


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Prints the report; the exit status is 0 whatever is in it."""
    parser = argparse.ArgumentParser(
        prog=program, description="Show TVM, mlc_llm, what is registered with it, and built models."
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(argv)
    return status.run(parser.prog, _run, debug=options.debug)


def _run() -> int:
    from mlc_rwkv_world.artifact.identity import describe_weights
    from mlc_rwkv_world.artifact.layout import PARAMS_DIR
    from mlc_rwkv_world.artifact.registry import registered
    from mlc_rwkv_world.integration.report import report

    for line in report():
        print(line, flush=True)
    for folder in registered():
        print(f"artifact {describe_weights(folder / PARAMS_DIR)}", flush=True)
    return 0
