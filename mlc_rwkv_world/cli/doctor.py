"""`python -m mlc_rwkv_world doctor`: what is installed and built, and what mlc_llm knows of us."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mlc_rwkv_world import console
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.errors import RwkvWorldError


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Prints the report; the exit status is 0 whatever is in it, and a model's where it is none."""
    return status.run(parser(program), lambda options: _run(options.model), argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program, description="Show TVM, mlc_llm, what is registered with it, and built models."
    )
    parser.add_argument(
        "model", nargs="*", help="show these, by name or path, instead of all that you built here"
    )
    return parser


def _run(models: Sequence[str]) -> int:
    from importlib import import_module

    from mlc_rwkv_world.artifact.registry import registered
    from mlc_rwkv_world.artifact.search import find
    from mlc_rwkv_world.stock.report import report

    folders: list[Path] = [find(model).folder.resolve() for model in models] or registered()
    for line in report():
        console.say(line)
    try:
        version = str(import_module("tvm").__version__)
    except Exception:
        # The report has said so.
        version = None
    for folder in folders:
        console.say(*_artifact(folder, version))
    return 0


def _artifact(folder: Path, tvm: str | None) -> Iterator[str]:
    """What stands in `folder`; `tvm` is the version that is here. Nothing is loaded."""
    from mlc_rwkv_world.artifact.identity import describe_library, describe_weights
    from mlc_rwkv_world.artifact.registry import Record
    from mlc_rwkv_world.artifact.search import find

    record = Record.read()
    try:
        found = find(folder)
        libraries = found.libraries
    except RwkvWorldError as error:
        yield f"artifact {folder}: {error}"
        return
    by_name = "" if record.holds(folder) else f"; only its path runs it: it {record.doubt(folder)}"
    yield f"artifact {describe_weights(found.params)}{by_name}"
    for path in libraries:
        yield f"  library {describe_library(path, found.params, tvm)}"
    for path in found.unlisted:
        yield f"  library {describe_library(path, found.params, tvm)}; not listed: it does not run"
