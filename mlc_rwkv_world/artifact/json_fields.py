"""Read JSON that may come from a stranger, one typed field at a time.

Every failure is an ArtifactError that names the file, the field and the value found.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from mlc_rwkv_world.artifact.links import require_file
from mlc_rwkv_world.errors import ArtifactError

# The index of the largest RWKV-4 model is under a megabyte.
MAX_BYTES = 64 << 20

# What a number counts lies in a file, and has so many axes at most.
_MOST = 1 << 62
_MOST_AXES = 8

BUILD_ID = "build_id"

T = TypeVar("T")


class Fields:
    """A JSON object whose fields are read by name and type.

    `source` is the file, and the way down to this object in it, for messages.
    A field that is absent or null gives `default` where the caller has one.
    """

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    @classmethod
    def read(cls, path: Path) -> Fields:
        """The object in the file `path`."""
        try:
            require_file(path)
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
        if len(data) > MAX_BYTES:
            raise ArtifactError(f"{path} is larger than {MAX_BYTES} bytes: not a file of ours.")
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes | str, source: str) -> Fields:
        """The object written in `data`."""
        try:
            values = json.loads(data, object_pairs_hook=_without_duplicates)
        # Deep nesting ends in RecursionError, an integer of many digits in ValueError.
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{source} is not valid JSON: {error}. Build or copy the artifact again."
            ) from None
        if not isinstance(values, dict):
            raise ArtifactError(f"{source} holds {_show(values)} instead of a JSON object.")
        return cls(values, source)

    def text(self, key: str, default: str | None = None) -> str:
        value: str = self._get(key, str, "a string", default)
        if not _is_text(value):
            raise self.error(key, "text: it holds half a character")
        return value

    def integer(self, key: str, default: int | None = None, *, minimum: int = 0) -> int:
        value: int = self._get(key, int, "an integer", default)
        if isinstance(value, bool) or not minimum <= value < _MOST:
            raise self.error(key, f"an integer of at least {minimum}, and not beyond all counting")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, (int, float), "a number", default)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(key, "a finite number")
        return number

    def items(self, key: str, kind: type[T], default: list[T] | None = None) -> list[T]:
        """A list whose items are all of `kind`."""
        values: list[T] = self._get(key, list, "a list", default)
        if any(not isinstance(value, kind) or isinstance(value, bool) for value in values):
            raise self.error(key, f"a list of {kind.__name__}")
        if any(isinstance(value, int) and not -_MOST < value < _MOST for value in values):
            raise self.error(key, "a list of integers, none beyond all counting")
        return values

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """A list of strings, all of them text."""
        values = self.items(key, str, default)
        if not all(map(_is_text, values)):
            raise self.error(key, "a list of texts: one holds half a character")
        return values

    def shape(self, key: str = "shape") -> tuple[int, ...]:
        sizes = self.items(key, int)
        if any(size < 1 for size in sizes):
            raise self.error(key, "a list of positive sizes")
        if len(sizes) > _MOST_AXES or math.prod(sizes) >= _MOST:
            raise self.error(key, f"the sizes of at most {_MOST_AXES} axes of a tensor in a file")
        return tuple(sizes)

    def object(self, key: str, default: dict[str, Any] | None = None) -> Fields:
        return Fields(self._get(key, dict, "an object", default), f"{self.source}: {key}")

    def objects(self, key: str, default: list[dict[str, Any]] | None = None) -> list[Fields]:
        values = self.items(key, dict, default)
        return [Fields(value, f"{self.source}: {key}[{i}]") for i, value in enumerate(values)]

    def build_id(self) -> str | None:
        """The id of the build, or None: what others write has none."""
        text = self.text(BUILD_ID, "")
        if text and not re.fullmatch("[0-9a-f]{32}", text):
            raise self.error(BUILD_ID, "32 hexadecimal digits")
        return text or None

    def error(self, key: str, expected: str) -> ArtifactError:
        """What to raise when the value of `key` is not what was `expected`."""
        found = _show(self.values[key]) if key in self.values else "nothing"
        return ArtifactError(f"{self.source}: {key!r} is {found} instead of {expected}.")

    def _get(self, key: str, kind: Any, expected: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, kind):
            raise self.error(key, expected)
        return value


def _is_text(value: str) -> bool:
    """Whether a string has a form in UTF-8: JSON can spell halves of characters alone."""
    # Nearly all are ASCII, thousands of names among them.
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {key!r} appears twice")
    return result


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
