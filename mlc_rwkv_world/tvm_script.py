"""TVMScript parsed in a third of TVM's time, with the same result.

Parsing a function asks `inspect` for the whole stack, and for a line of source in every frame of
it; so does each macro in the function, whose own source is looked up for each function that it is
defined in, and parsed again at each use. For a frame without a file, as importing leaves many,
`inspect` looks through all modules every time. See `tvm_expressions` for the rest.

What is left out are the places in the source that TVM notes at every node of the result.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

from tvm.script.parser.core import diagnostics, doc, parser, utils
from tvm.tirx.script.parser import entry

from mlc_rwkv_world.tvm_expressions import evaluate

# The frame of a stack whose line of source TVM reads, to see whether it begins a class.
_READ = 2


class _Inspect:
    """`inspect`, whose stacks give a line of source only where TVM reads it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)

    def getouterframes(self, frame: FrameType | None) -> list[inspect.FrameInfo]:
        """`frame` and those that called it."""
        frames = []
        while frame is not None:
            code = frame.f_code
            place = (code.co_filename, frame.f_lineno, code.co_name)
            frames.append(inspect.FrameInfo(frame, *place, None, None))
            frame = frame.f_back
        return frames

    def stack(self) -> list[inspect.FrameInfo]:
        """The caller's frame and those that called it."""
        this = inspect.currentframe()
        frames = self.getouterframes(this.f_back if this else None)
        if len(frames) > _READ and not frames[_READ].filename.startswith("<"):
            source = inspect.getframeinfo(frames[_READ].frame).code_context
            frames[_READ] = frames[_READ]._replace(code_context=source)
        return frames


_tree = doc.parse


@lru_cache(maxsize=1024)
def _lasting_tree(source: str) -> Any:
    """A source's syntax tree, if parsing leaves it as it is each time; else None.

    Of a function inside another one, parsing takes the decorator off.
    """
    functions = (isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(source)))
    return None if sum(functions) > 1 else _tree(source)


def _parse(source: str, *args: Any, **kwargs: Any) -> Any:
    """As TVM's, but gives the same tree again where that can be."""
    tree = None if args or kwargs else _lasting_tree(source)
    return _tree(source, *args, **kwargs) if tree is None else tree


_lines = diagnostics.getsourcelines
_names = utils._collect_annotation_names


@lru_cache(maxsize=1024)
def _lines_of_code(code: CodeType) -> tuple[tuple[str, ...], int]:
    lines, first = _lines(code)
    return tuple(lines), first


def _source_lines(found: Any) -> tuple[list[str], int]:
    """As TVM's, but looks the lines of a function up once, however often it is defined."""
    if not inspect.isfunction(found):
        return _lines(found)  # type: ignore[no-any-return]
    lines, first = _lines_of_code(inspect.unwrap(found).__code__)
    return list(lines), first


@lru_cache(maxsize=1024)
def _names_of_code(code: CodeType) -> frozenset[str]:
    return frozenset(_names(code))


def _annotation_names(found: Any) -> set[str]:
    """As TVM's, once for each function."""
    return set(_names_of_code(found.__code__) if inspect.isfunction(found) else _names(found))


_NO_SPAN = nullcontext()


def _without_span(_parser: Any, _node: Any) -> AbstractContextManager[None]:
    return _NO_SPAN


def _as_it_is(_parser: Any, value: Any) -> Any:
    return value


_INSTEAD: tuple[tuple[Any, str, Any], ...] = (
    (parser, "inspect", _Inspect()),
    (entry, "inspect", _Inspect()),
    (doc, "parse", _parse),
    (diagnostics, "getsourcelines", _source_lines),
    (utils, "_collect_annotation_names", _annotation_names),
    (parser, "eval_expr", evaluate),
    (parser.Parser, "with_source_span", _without_span),
    (parser.Parser, "annotate_current_source_span", _as_it_is),
)


@contextmanager
def quick_parsing() -> Iterator[None]:
    """While the block runs, TVM's parser has these in place of its own."""
    before = [getattr(module, name) for module, name, _ in _INSTEAD]
    for module, name, value in _INSTEAD:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(_INSTEAD, before, strict=True):
            setattr(module, name, value)
