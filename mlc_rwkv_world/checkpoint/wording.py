"""How strings that come out of a file appear in a message: quoted, escaped and short."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(text: object, limit: int = 80) -> str:
    """`text` as a Python literal, control characters escaped, at most `limit` long."""
    literal = repr(str(text)[: limit + 1])
    return literal if len(literal) <= limit else f"{literal[: limit - 4]}...{literal[-1]}"


def listed(names: Iterable[object], limit: int = 3) -> str:
    """The first `limit` names, quoted, and how many more there are."""
    every = list(names)
    shown = ", ".join(quoted(name) for name in every[:limit])
    more = len(every) - limit
    return f"{shown} and {more} more" if more > 0 else shown
