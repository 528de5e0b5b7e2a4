"""Which files of a model folder hold its weights, its configuration, its vocabulary."""

from __future__ import annotations

import codecs
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_rwkv_world.artifact.layout import TOKENIZER_MODEL
from mlc_rwkv_world.checkpoint.origin import fetch_again
from mlc_rwkv_world.checkpoint.stored import MAX_TABLE
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.errors import CheckpointError

CONFIG = "config.json"


@dataclass(frozen=True)
class Layout:
    """One way in which Hugging Face stores weights."""

    single: str
    index: str
    shards: str


SAFETENSORS = Layout("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
BINS = Layout(
    "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"
)  # fmt: skip
_LONE_FILES = ("*.pth", "*.safetensors", "*.st", "*.bin", "*.pt")


def layouts(prefer_safetensors: bool) -> tuple[Layout, Layout]:
    """Both of Hugging Face's layouts, the preferred one first."""
    return (SAFETENSORS, BINS) if prefer_safetensors else (BINS, SAFETENSORS)


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one model; `owner` tells the file of each tensor where an index does."""

    files: tuple[Path, ...]
    owner: dict[str, str] | None = None


def find_weights(folder: Path, *, prefer_safetensors: bool = True) -> WeightFiles:
    """The weight files of `folder`, in whichever layout is there.

    Raises CheckpointError where there are none, several to choose from, or where the shards
    are not those that the index names.
    """
    for layout in layouts(prefer_safetensors):
        shards = sorted(path.name for path in folder.glob(layout.shards))
        if (folder / layout.single).exists():
            # Other files of such a name, an adapter's say, may stand beside a whole one.
            if strays := [name for name in shards if "-of-" in name]:
                raise CheckpointError(
                    f"{folder} has {layout.single} and beside it the shards {listed(strays)}: two "
                    "downloads are mixed. Remove what does not belong here."
                )
            return WeightFiles((inside(folder / layout.single),))
        if (folder / layout.index).exists():
            return _sharded(folder, layout)
        if shards:
            raise CheckpointError(
                f"{folder} has the shards {listed(shards)} but not their index {layout.index}. "
                "Download it into the same folder."
            )
    lone = [path for pattern in _LONE_FILES for path in sorted(folder.glob(pattern))]
    if len(lone) == 1:
        return WeightFiles((inside(lone[0]),))
    if lone:
        raise CheckpointError(
            f"{folder} holds several checkpoints: {listed([p.name for p in lone], 8)}. Give the "
            "path of the one that you mean."
        )
    found = sorted(path.name for path in folder.iterdir())
    raise CheckpointError(
        f"{folder} holds no weights; expected {SAFETENSORS.single}, {BINS.single}, shards with "
        f"their index, or one .pth file, found {listed(found, 8) or 'an empty folder'}."
    )


def _sharded(folder: Path, layout: Layout) -> WeightFiles:
    index = folder / layout.index
    owner = index_owners(index)
    names = sorted(set(owner.values()))
    if missing := [name for name in names if not (folder / name).exists()]:
        raise CheckpointError(
            f"{folder} lacks {listed(missing)} of the {len(names)} shards that {index.name} "
            "names. Download the rest."
        )
    found = {path.name for path in folder.glob(layout.shards)}
    if extra := sorted(found - set(names)):
        raise CheckpointError(
            f"{folder} has the shards {listed(extra)}, which {index.name} does not name: two "
            "downloads are mixed. Remove what does not belong here."
        )
    return WeightFiles(tuple(inside(folder / name) for name in names), owner)


def index_owners(index: Path) -> dict[str, str]:
    """The shard of each tensor, as the index file says; every shard is a plain file name."""
    owner = read_json(index).get("weight_map")
    if not isinstance(owner, dict) or not owner:
        raise CheckpointError(f"{index} has no weight_map, expected the shard of each tensor.")
    for name in owner.values():
        if not is_plain_name(name):
            raise CheckpointError(
                f"{index} names the shard {quoted(name)}, expected the name of a file beside it. "
                "Nothing outside the folder is read."
            )
    return owner


def is_plain_name(name: object) -> bool:
    """Whether `name` can only mean a file in the very folder that it is looked up in."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        # No file system takes longer names, and none can be asked for half a character.
        and name.isprintable()
        and len(name.encode()) <= 255
        and not any(character in name for character in "/\\:\0")
    )


def inside(path: Path) -> Path:
    """`path`; CheckpointError where it is a link out of its folder, or there and no file.

    A pipe or a device would block or never end. The hub's cache is made of links, from
    `snapshots/<revision>` to `blobs` beside it: these are followed.
    """
    # Path.resolve raises where links lead in a circle.
    target, folder = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    cached = any(
        parent.name == "snapshots" and target.parent == parent.parent / "blobs"
        for parent in folder.parents
    )
    if target.parent != folder and not cached:
        raise CheckpointError(
            f"{path} is a link that leaves its folder: refused. Put the file itself there."
        )
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file. {fetch_again(path)}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`."""
    try:
        with inside(path).open("rb") as file:
            data = file.read(MAX_TABLE + 1)
        if len(data) > MAX_TABLE:
            raise CheckpointError(f"{path} has more than {MAX_TABLE} bytes, too many for its kind.")
        # Editors of some systems begin a file with a mark of its encoding.
        content = json.loads(data.removeprefix(codecs.BOM_UTF8).decode())
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}), as JSON is: save it "
            "again in this encoding, or put the original there."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not JSON ({error}). Mend it, or put the original there."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object.")
    return content


def find_vocabulary(folder: Path) -> Path | None:
    """The vocabulary file in a model folder, or None.

    That is `tokenizer_model`, else the newest `rwkv_vocab_v*.txt`. Raises CheckpointError where
    it is a link that leaves the folder, or no file.
    """
    compiled = folder / TOKENIZER_MODEL
    if compiled.is_file():
        return inside(compiled)
    text = max(folder.glob("rwkv_vocab_v*.txt"), default=None)
    return None if text is None else inside(text)
