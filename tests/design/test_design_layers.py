"""The order of the rooms that docs/design.md draws, and none inside a room that is a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "mlc_rwkv_world"
ROOT = Path(__file__).parents[2] / PACKAGE
# A room imports only rooms before it.
ORDER = (
    *("tvm_names", "tvm_expressions", "tvm_script"),
    *("reporter", "characters", "errors", "console", "artifact"),
    *("tokenizer", "checkpoint", "storage", "model", "kernels", "versions"),
    *("compiler", "convert", "runtime", "numerics", "builder", "chat", "serving"),
    *("stock", "building", "plots", "adapters", "cli"),
)
# These run where TVM's compiler is not installed.
WITHOUT_COMPILER = ("runtime", "chat", "serving", "tokenizer", "artifact", "storage")


def rooms() -> list[str]:
    """Folders and modules of the package, by the names that imports have for them."""
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    return sorted(found - {"__init__", "__main__"})


def imports(room: str) -> Iterator[tuple[Path, str]]:
    """Every module that a room's files import, wherever in them, with the file."""
    files = sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                yield from ((path, f"{node.module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)


def module_of(path: Path) -> str:
    """A file's module, without the package's own name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def ties(room: str) -> dict[str, set[str]]:
    """Each module of a room, and those of the same room that it imports."""
    # Compiled modules have a .pyi.
    files = [path for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".pyi")]
    graph: dict[str, set[str]] = {module_of(path): set() for path in files}
    for path, name in imports(room):
        imported = name.removeprefix(f"{PACKAGE}.")
        # What is no module is a name in one.
        target = imported if imported in graph else imported.rpartition(".")[0]
        if target in graph and target != module_of(path):
            graph[module_of(path)].add(target)
    return graph


def test_every_room_has_a_place() -> None:
    assert rooms() == sorted(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_imports_point_down(room: str) -> None:
    below = {room, *ORDER[: ORDER.index(room)], "__version__"}
    for path, name in imports(room):
        package, *inner = name.split(".")
        if package == PACKAGE:
            assert inner[0] in below, f"{path} imports {name}"


@pytest.mark.parametrize("room", ORDER)
def test_no_imports_go_round(room: str) -> None:
    """Wherever they stand: in a function, or for types alone, they tie modules as well."""
    try:
        TopologicalSorter(ties(room)).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("room", WITHOUT_COMPILER)
def test_the_compiler_is_not_needed(room: str) -> None:
    compiling = ("tvm.relax.frontend", "tvm.script", "tvm.tirx", "tvm.relax.transform", "tvm.s_tir")
    for path, name in imports(room):
        assert not name.startswith(compiling), f"{path} imports {name}"


def test_references_need_numpy_alone() -> None:
    """They are carried to machines that have nothing but TVM's runtime, see benchmarks/gpu.sh."""
    code = "import sys; import mlc_rwkv_world.versions.references; print('tvm' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8"
    )
    assert found.stdout == "False\n"


def test_only_the_stock_room_knows_mlc_llm() -> None:
    for room in set(ORDER) - {"stock"}:
        for path, name in imports(room):
            assert name.split(".")[0] != "mlc_llm", f"{path} imports {name}"
