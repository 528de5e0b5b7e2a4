"""Find the artifact that a user means.

`find` takes the folder of an artifact, its `params` folder, its configuration file, or a
name, with or without the quantization at its end. A name is looked for in these places, and
the first that has it wins:

    .  ./dist  ./dist/prebuilt  $MLC_RWKV_WORLD_HOME  the record of what this user built

The library lies beside `params`, or in it, or where the caller says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, PARAMS_DIR
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.artifact.registry import HOME_VARIABLE, REGISTRY, home, registered
from mlc_rwkv_world.errors import NotFoundError, UsageError

LIBRARY_ENDINGS = (".so", ".dylib", ".dll")
GPU_KINDS = ("cuda", "metal", "vulkan", "opencl", "rocm")

_QUANTIZATION = re.compile(r"q\d+f\d+(?:_\d+)?", re.ASCII)
_TARGET = re.compile(rf".*-{_QUANTIZATION.pattern}-(.+)", re.ASCII)


@dataclass(frozen=True)
class Found:
    """The paths of an artifact: its folder, its parameters', and the libraries that it has.

    `chosen` is the library that the caller wants, if one was named.
    """

    name: str
    folder: Path
    params: Path
    libraries: tuple[Path, ...]
    chosen: Path | None = None

    @property
    def kinds(self) -> set[str]:
        """The kinds of devices that there is a library for."""
        libraries = self.libraries if self.chosen is None else (self.chosen,)
        return {library_kind(path) for path in libraries}

    def libraries_for(self, kind: str) -> tuple[Path, ...]:
        """The libraries for devices of `kind` ("cpu", "cuda", ...), the newest first.

        A chosen library is the only one, whatever its name says of its kind.
        """
        if self.chosen is not None:
            return (self.chosen,)
        fitting = [path for path in self.libraries if library_kind(path) == kind]
        return tuple(sorted(fitting, key=lambda path: path.stat().st_mtime, reverse=True))


def find(model: str | Path, *, model_lib: str | Path | None = None) -> Found:
    """Find the artifact that `model` means (see the module's text).

    `model_lib` is the library to use instead of those beside the parameters.
    Raises NotFoundError, which says where it looked, and UsageError where a name without
    its quantization fits several artifacts of one place.
    """
    text = str(model)
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is no model's name. Give a name, or the path of an artifact.")
    params = _params_of(expanded(text))
    if params is None:
        params = _by_name(text)
    folder = params.parent if params.name == PARAMS_DIR else params
    chosen = expanded(model_lib) if model_lib is not None else None
    if chosen is not None and not chosen.is_file():
        raise NotFoundError(f"The library {chosen} does not exist.")
    libraries = libraries_in(folder) or libraries_in(params)
    return Found(folder.resolve().name, folder, params, libraries, chosen)


def library_kind(library: Path) -> str:
    """The kind of device that the library `<model>-<quantization>-<target>.so` is for."""
    match = _TARGET.fullmatch(library.stem)
    words = re.split(r"[-_.]", match[1] if match else library.stem)
    return next((kind for kind in GPU_KINDS if kind in words), "cpu")


def _params_of(path: Path) -> Path | None:
    """The `params` folder that `path` leads to, or None."""
    if path.name == CHAT_CONFIG and path.is_file():
        return path.parent
    for folder in (path / PARAMS_DIR, path):
        if (folder / CHAT_CONFIG).is_file():
            return folder
    return None


def _by_name(name: str) -> Path:
    places = [Path(), Path("dist"), Path("dist/prebuilt"), home()]
    for place in places:
        if (params := _in_place(name, _folders(place), str(place.absolute()))) is not None:
            return params
    record = home() / REGISTRY
    if (params := _in_place(name, registered(), str(record))) is not None:
        return params
    looked = [str(expanded(name).absolute())]
    looked += [str(place.absolute() / name) for place in places[1:]]
    raise NotFoundError(
        f"No artifact named {name!r}. Looked for it, and for {name}-<quantization>, in:\n"
        + "".join(f"  {path}\n" for path in looked)
        + f"  {record}\n"
        + f"Build it with `python -m mlc_rwkv_world build`, give its path, or set {HOME_VARIABLE}."
    )


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _in_place(name: str, folders: Iterable[Path], place: str) -> Path | None:
    """The `params` folder of the one among `folders` that is called `name`."""
    fitting: dict[str, Path] = {}
    for folder in folders:
        if folder.name == name or _without_quantization(folder.name) == name:
            params = _params_of(folder)
            if params is not None:
                # The first of a name wins: the record lists the latest build first.
                fitting.setdefault(folder.name, params)
    if name in fitting:
        return fitting[name]
    if len(fitting) > 1:
        raise UsageError(
            f"{name!r} could be any of {', '.join(sorted(fitting))} in {place}. Give the full name."
        )
    return next(iter(fitting.values()), None)


def _without_quantization(name: str) -> str | None:
    stem, dash, last = name.rpartition("-")
    return stem if dash and _QUANTIZATION.fullmatch(last) else None


def libraries_in(folder: Path) -> tuple[Path, ...]:
    """The compiled libraries that lie in `folder`."""
    return tuple(path for path in _folders(folder) if path.suffix in LIBRARY_ENDINGS)
