"""Find the artifact that a user means, and say which of its libraries may run.

`find` takes a path: the folder of an artifact, its `params` folder or its configuration file. Or
it takes a name, with or without the quantization at its end, which is looked for in

    .  ./dist  ./dist/prebuilt  $MLC_RWKV_WORLD_HOME  the record of what this user built

Of a name's artifacts only those count that this user built (see `registry`), since whatever folder
one stands in may hold anything; of those, the first that has a library wins. What holds a slash
is a path, and so are `.`, `..`, `params` and `mlc-chat-config.json`.

A library runs where the artifact's list names it or the caller does, and nowhere else.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlc_rwkv_world.artifact.checksums import read_checksums
from mlc_rwkv_world.artifact.layout import (
    CHAT_CONFIG,
    LIBRARY_ENDINGS,
    NDARRAY_CACHE,
    PARAMS_DIR,
    SHARD_NAME,
    TENSOR_CACHE,
)
from mlc_rwkv_world.artifact.links import require_file
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.artifact.registry import HOME_VARIABLE, REGISTRY, Record, home
from mlc_rwkv_world.errors import ArtifactError, NotFoundError, RwkvWorldError, UsageError

GPU_KINDS = ("cuda", "metal", "vulkan", "opencl", "rocm", "webgpu")

_QUANTIZATION = re.compile(r"q\d+f\d+(?:_\d+)?", re.ASCII)
_TARGET = re.compile(rf".*-{_QUANTIZATION.pattern}-(.+)", re.ASCII)
_INDEX_NAMES = (TENSOR_CACHE, NDARRAY_CACHE)
_OF_PARAMETERS = (*_INDEX_NAMES, SHARD_NAME.format(index=0))
# Words that name a place in any folder, and no model.
_PLACES = (os.curdir, os.pardir, PARAMS_DIR, CHAT_CONFIG)


@dataclass(frozen=True)
class Found:
    """The paths of an artifact: its folder and its parameters'.

    `chosen` is the library that the caller wants, if one was named.
    """

    name: str
    folder: Path
    params: Path
    chosen: Path | None = None

    @cached_property
    def checksums(self) -> dict[str, str] | None:
        """The artifact's list; None where it has none. Raises ArtifactError where it is damaged."""
        return read_checksums(self.folder)

    @cached_property
    def libraries(self) -> dict[Path, str]:
        """The libraries that the list names, and their checksums; they may be missing or damaged.

        Parameters alone have none, whatever lies among them.
        """
        if self.params == self.folder:
            return {}
        return {
            self.folder / name: checksum
            for name, checksum in (self.checksums or {}).items()
            if "/" not in name and Path(name).suffix in LIBRARY_ENDINGS
        }

    @cached_property
    def unlisted(self) -> tuple[Path, ...]:
        """The libraries beside and among the parameters that the list does not name."""
        here = [path for folder in (self.folder, self.params) for path in libraries_in(folder)]
        return tuple(path for path in dict.fromkeys(here) if path not in self.libraries)

    @property
    def kinds(self) -> set[str]:
        """The kinds of devices that there is a library for."""
        libraries: Iterable[Path] = self.libraries if self.chosen is None else (self.chosen,)
        return {library_kind(path) for path in libraries}

    def libraries_for(self, kind: str) -> tuple[Path, ...]:
        """The libraries for devices of `kind` ("cpu", "cuda", ...), the newest first.

        A chosen library is the only one, whatever its name says of its kind.
        """
        if self.chosen is not None:
            return (self.chosen,)
        fitting = [path for path in self.libraries if library_kind(path) == kind]
        return tuple(sorted(fitting, key=_time, reverse=True))


def find(model: str | Path, *, model_lib: str | Path | None = None) -> Found:
    """Find the artifact that `model` means (see the module's text); a `Path` is never a name.

    `model_lib` is the library to use instead of those that the artifact lists.
    Raises NotFoundError, which says where it looked; ArtifactError, which names the file, where
    a part of the artifact is missing; and UsageError where a name without its quantization fits
    several artifacts of one place, or only such that this user did not build.
    """
    text = str(model)
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is no model's name. Give a name, or the path of an artifact.")
    path = expanded(text)
    chosen = expanded(model_lib) if model_lib is not None else None
    if chosen is not None and not chosen.is_file():
        raise NotFoundError(f"The library {chosen} does not exist.")
    if isinstance(model, Path) or _is_path(text):
        params = _by_path(path)
    else:
        params = _by_name(text, any_library=chosen is not None)
    return _found(params, chosen)


def spelled(folder: Path) -> str:
    """What finds the artifact in `folder`, for a shell: its name where that does, else its path."""
    try:
        # What begins with a dash is taken for an option.
        if (
            not folder.name.startswith("-")
            and find(folder.name).folder.resolve() == folder.resolve()
        ):
            return shlex.quote(folder.name)
    except RwkvWorldError:
        pass
    return shlex.quote(_as_path(folder))


def is_artifact(folder: Path) -> bool:
    """Whether an artifact stands in `folder`, or what is left of one."""
    return (_params_of(folder) or _missing_part(folder)) is not None


def library_kind(library: Path) -> str:
    """The kind of device that the library `<model>-<quantization>-<target>.so` is for."""
    match = _TARGET.fullmatch(library.stem)
    words = re.split(r"[-_.]", match[1] if match else library.stem)
    return next((kind for kind in GPU_KINDS if kind in words), "cpu")


def libraries_in(folder: Path) -> tuple[Path, ...]:
    """The compiled libraries that lie in `folder`."""
    return tuple(path for path in _folders(folder) if path.suffix in LIBRARY_ENDINGS)


def _found(params: Path, chosen: Path | None = None) -> Found:
    folder = params.parent if params.name == PARAMS_DIR else params
    return Found(folder.resolve().name, folder, params, chosen)


def _is_path(text: str) -> bool:
    return os.sep in text or text.startswith("~") or text in _PLACES


def _as_path(folder: Path) -> str:
    text = str(folder)
    return text if os.sep in text and not text.startswith("-") else f"{os.curdir}{os.sep}{text}"


def _by_path(path: Path) -> Path:
    """The `params` folder that `path` leads to. Raises NotFoundError, ArtifactError."""
    if path.name == CHAT_CONFIG and not path.is_dir():
        path = path.parent
    if path.name in ("", os.pardir):
        # Path.resolve raises where links lead in a circle.
        path = Path(os.path.realpath(path))
    if (params := _params_of(path)) is not None:
        return params
    folder = path.parent if path.name == PARAMS_DIR else path
    if (missing := _missing_part(folder)) is not None:
        require_file(missing)
        raise ArtifactError(f"{missing} is missing. Build or copy the artifact again.")
    raise NotFoundError(
        f"No artifact in {path.absolute()}: "
        f"{f'it holds no {PARAMS_DIR}/{CHAT_CONFIG}' if path.is_dir() else 'no such folder'}. "
        "Give the path of a built model, or build it with `python -m mlc_rwkv_world build`."
    )


def _params_of(path: Path) -> Path | None:
    """The folder of parameters that `path` is or holds, by the configuration in it.

    What lies in a folder of parameters is data, what looks like an artifact too, and stock's
    layout is such a folder. It takes an index beside the configuration to be one under another
    name: a configuration alone may be a copy that somebody left in an artifact. Both may be
    copies in what this user built, since there the list says where the parameters are.
    """
    inner = path / PARAMS_DIR
    with_index = (path / CHAT_CONFIG).is_file() and _holds(path, _INDEX_NAMES)
    if path.name == PARAMS_DIR:
        folders = [path]
    elif _lists_parameters(path) and (not with_index or Record.read().holds(path)):
        folders = [inner]
    elif with_index:
        folders = [path]
    else:
        folders = [inner] if _holds(inner, _OF_PARAMETERS) else [inner, path]
    return next((folder for folder in folders if (folder / CHAT_CONFIG).is_file()), None)


def _missing_part(path: Path) -> Path | None:
    """What is missing of the artifact in the folder `path`; None where there is none at all."""
    params = path / PARAMS_DIR
    listed = _lists_parameters(path)
    for folder in (params,) if listed else (params, path):
        if _holds(folder, _OF_PARAMETERS):
            return folder / CHAT_CONFIG
    if listed or any(name.suffix in LIBRARY_ENDINGS for name in _listed(path)):
        return params / CHAT_CONFIG if params.is_dir() else params
    return None


def _holds(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).exists() for name in names)


def _lists_parameters(path: Path) -> bool:
    return any(name.parts[0] == PARAMS_DIR for name in _listed(path))


def _listed(path: Path) -> list[Path]:
    """What the list in `path` names; nothing where there is none, or it is damaged."""
    try:
        return [Path(name) for name in read_checksums(path) or ()]
    except ArtifactError:
        return []


def _by_name(name: str, *, any_library: bool) -> Path:
    record, user = Record.read(), home()
    places = [Path(), Path("dist"), Path("dist/prebuilt"), *([user] if user else [])]
    found = {str(place.absolute()): _called(name, _folders(place)) for place in places}
    if user is not None:
        found[str(user / REGISTRY)] = _called(name, record.folders)

    def is_whole(folder: Path) -> bool:
        return record.holds(folder) and _params_of(folder) is not None

    def runs(folder: Path) -> bool:
        return is_whole(folder) and (any_library or bool(_found(_by_path(folder)).libraries))

    # A build without a library hides none that works, nor does one that lost a part.
    for fits in (runs, is_whole, record.holds):
        for place, folders in found.items():
            if one := _only(name, filter(fits, folders), place):
                return _by_path(one)
    _refuse(name, record, [folder for folders in found.values() for folder in folders])
    looked = [str(Path(name).absolute())]
    looked += [str(place.absolute() / name) for place in places[1:]]
    looked += [place for place in found if place.endswith(REGISTRY)]
    raise NotFoundError(
        f"No artifact named {name!r}. Looked for it, and for {name}-<quantization>, in:",
        lines=[
            *(f"  {path}" for path in looked),
            "Build it with `python -m mlc_rwkv_world build`, give its path, or set "
            f"{HOME_VARIABLE}.",
        ],
    )


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _called(name: str, folders: Iterable[Path]) -> list[Path]:
    """Those among `folders` with this name, with or without a quantization at its end."""
    return [path for path in folders if name in (path.name, _without_quantization(path.name))]


def _only(name: str, folders: Iterable[Path], place: str) -> Path | None:
    """The one that `name` means of those that are called so, or None."""
    fitting: dict[str, Path] = {}
    for folder in folders:
        # The first of a name wins: the record lists the latest build first.
        fitting.setdefault(folder.name, folder)
    if name in fitting:
        return fitting[name]
    if len(fitting) > 1:
        raise UsageError(
            f"{name!r} could be any of {', '.join(sorted(fitting))} in {place}. Give the full name."
        )
    return next(iter(fitting.values()), None)


def _refuse(name: str, record: Record, folders: Iterable[Path]) -> None:
    """Raise UsageError where `folders` hold artifacts, none of which this user built as it is."""
    different = {os.path.realpath(folder): folder for folder in reversed(list(folders))}
    others = [folder for folder in reversed(different.values()) if is_artifact(folder)]
    if not others:
        return
    raise UsageError(
        f"{name!r} is no artifact that you built on this machine; a name runs no others.",
        lines=[
            *(f"  {folder.absolute()} {record.doubt(folder)}" for folder in others),
            f"If you trust it, give its path: --model {shlex.quote(_as_path(others[0]))}",
        ],
    )


def _without_quantization(name: str) -> str | None:
    stem, dash, last = name.rpartition("-")
    return stem if dash and _QUANTIZATION.fullmatch(last) else None


def _time(path: Path) -> float:
    """When a file was written; what is missing comes first, to be named."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf
