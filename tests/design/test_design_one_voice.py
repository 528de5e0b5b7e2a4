"""What must be done in one place only: printing, and putting `~` in full."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "mlc_rwkv_world"
MODULES = [*sorted(ROOT.rglob("*.py")), ROOT.parent / "mlc_llm" / "build.py"]
# Ways to a terminal beside `print`, by the names that calls and attributes have.
PRINTING = {"print", "print_exc", "print_exception", "print_stack", "pprint", "perror"}
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}
PRINTERS = {"tqdm", "logging", "warnings", "curses", "getpass", "rich", "traceback", "pprint"}


def words(path: Path) -> Iterator[str]:
    """What a module uses of all this."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "id", getattr(function, "attr", ""))
            if name in PRINTING:
                yield name
        if isinstance(node, ast.Attribute) and node.attr in STREAMS:
            of_sys = getattr(node.value, "id", "") == "sys"
            yield from [f"sys.{node.attr}"] if of_sys else []
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in PRINTERS)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module.split(".")[0] in PRINTERS:
                yield node.module
            if node.module == "sys":
                yield from (f"sys.{a.name}" for a in node.names if a.name in STREAMS)


def test_only_the_console_prints() -> None:
    found = {path.relative_to(ROOT.parent).as_posix(): set(words(path)) for path in MODULES}
    assert {"print", "sys.stdout", "sys.stderr", "tqdm"} <= found.pop("mlc_rwkv_world/console.py")
    assert not {name: ways for name, ways in found.items() if ways}


def test_the_rule_sees_what_it_forbids(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    for line in (
        "print('x')",
        "import sys; sys.stdout.write('x')",
        "import sys; sys.stderr.flush()",
        "from sys import stdout",
        "from tqdm import tqdm",
        "import traceback; traceback.print_exc()",
        "import warnings",
    ):
        path.write_text(line)
        assert list(words(path)), line


def test_one_function_expands_paths() -> None:
    users = [path for path in MODULES if "expanduser(" in path.read_text(encoding="utf-8")]
    names = {path.relative_to(ROOT).as_posix() for path in users}
    # The package asks whether there is a home at all, before any of its modules is imported.
    assert names == {"artifact/places.py", "__init__.py"}
