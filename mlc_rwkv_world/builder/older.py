"""What a build keeps of the artifact that stood in its place."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mlc_rwkv_world.artifact.checksums import read_checksums
from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, PARAMS_DIR, SHA256SUMS
from mlc_rwkv_world.artifact.registry import Record
from mlc_rwkv_world.artifact.search import is_artifact
from mlc_rwkv_world.builder.plan import Plan
from mlc_rwkv_world.errors import ArtifactError, UsageError
from mlc_rwkv_world.model.config import ModelConfig

# When a file was written, and its size.
Stamp = tuple[int, int]


def carry_over(plan: Plan, new: Path, *, weights: bool) -> dict[Path, Stamp]:
    """Keeps what this build does not write: other targets' libraries, parameters, user's files.

    Weights that were converted for another configuration of the model and the libraries beside
    them belong together: neither stays without the other, since nothing else would notice. Gives
    what stood there, for `bring_later`.
    """
    old = plan.folder
    stood = {path: _stamp(old / path) for path in _files(old)}
    if old.is_dir() and any(old.iterdir()) and not is_artifact(old):
        raise UsageError(
            f"{old} is there already, and no artifact: nothing in it was touched. Move it away, or "
            "give another --artifact-path."
        )
    stale = not _same_model(old / PARAMS_DIR, plan.config)
    if stale and not weights:
        raise ArtifactError(
            f"{old / PARAMS_DIR} was converted for another configuration of the model. Build "
            "without --build-model-only."
        )
    for path in old.iterdir() if old.is_dir() else ():
        if path.name == SHA256SUMS or (weights and path.name == PARAMS_DIR):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link_or_copy)
        elif not (stale and path.name.startswith(f"{plan.name}-")):
            _link_or_copy(str(path), str(new / path.name))
    return stood


def bring_later(old: Path, new: Path, stood: Mapping[Path, Stamp]) -> None:
    """Moves to `new` what was written into the folder `old` since `carry_over` gave `stood`.

    A build of a large model takes long enough to save a conversation there. What the build itself
    wrote stays, and so do its parameters, which are nobody else's.
    """
    for path in _files(old):
        place = new / path
        if path.parts[0] == PARAMS_DIR or _stamp(old / path) == stood.get(path):
            continue
        # None of what stood there, or no longer that.
        if not os.path.lexists(place) or _stamp(place) == stood.get(path):
            place.parent.mkdir(parents=True, exist_ok=True)
            (old / path).replace(place)


def kept_checksums(plan: Plan, built: list[Path], *, weights: bool) -> dict[str, str]:
    """The checksums of what this build took over from the older artifact.

    Of its libraries only those of an artifact that this user built: the new list says what runs.
    """
    try:
        old = read_checksums(plan.folder) or {}
    except ArtifactError:
        # `verify` has the last word on files whose checksums are lost: they are new from here on.
        return {}
    ours = Record.read().knows(plan.folder)
    replaced = {*(path.name for path in built), f"{PARAMS_DIR}/{CHAT_CONFIG}"}
    return {
        name: value
        for name, value in old.items()
        if name not in replaced and (not weights if name.startswith(f"{PARAMS_DIR}/") else ours)
    }


def _same_model(params: Path, config: ModelConfig) -> bool:
    """Whether weights in `params`, if there are any, were converted for this configuration."""
    if not params.is_dir():
        return True
    try:
        fields = Fields.read(params / CHAT_CONFIG).object("model_config")
        old = ModelConfig.from_dict(fields.values)
    except (ValueError, TypeError):
        return False
    of_the_library = (
        "context_window_size",
        "prefill_chunk_size",
        "max_batch_size",
        "fp32_layers",
        "fp32_reasons",
        "float32_keys",
    )
    return config == dataclasses.replace(
        old, **{field: getattr(config, field) for field in of_the_library}
    )


def _files(folder: Path) -> list[Path]:
    """Every file and link below `folder`, as a path from there."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name).relative_to(folder) for name in [*files, *links]]
    return found


def _stamp(path: Path) -> Stamp:
    status = path.lstat()
    return status.st_mtime_ns, status.st_size


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
