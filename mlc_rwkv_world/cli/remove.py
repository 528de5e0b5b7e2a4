"""`rwkv-world remove`: give back the disk that a built model or a download takes."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlc_rwkv_world import console
from mlc_rwkv_world.artifact.atomic import locked
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.artifact.storage import storing
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.errors import NotFoundError, UsageError


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command; gives the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program,
        description="Remove a model that you built on this machine, or a checkpoint that was "
        "downloaded into DIR/models. Nothing else is ever removed.",
    )
    parser.add_argument("name", help="as `list` shows it, or a path")
    parser.add_argument("--artifact-path", default="dist", metavar="DIR", help="default: dist")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _run(options: argparse.Namespace) -> int:
    folder = _meant(options.name, expanded(options.artifact_path) / "models")
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    what = f"{folder} ({size / 1e6:.1f} MB)"
    if not options.yes and not console.agreed(f"Remove {what}?"):
        raise UsageError(f"{what} was left as it is. --yes removes it without asking.")
    with storing(folder), locked(folder):
        shutil.rmtree(folder)
    console.say(f"Removed {what}.")
    return 0


def _meant(name: str, models: Path) -> Path:
    """The one folder of ours that is called so."""
    from mlc_rwkv_world.artifact.registry import Record
    from mlc_rwkv_world.checkpoint.origin import RECORD

    record = Record.read()
    path = expanded(name).absolute()
    built = [folder for folder in record.folders if folder.is_dir()]
    fetched = [place.parent for place in models.absolute().glob(f"*/{RECORD}")]
    ours = [folder for folder in [*built, *fetched] if not folder.is_symlink()]
    found = [folder for folder in ours if folder == path] or [
        folder for folder in ours if folder.name == name
    ]
    if len(found) > 1:
        raise UsageError(
            f"{name!r} could be any of these. Give a path:", lines=[f"  {one}" for one in found]
        )
    if not found:
        raise NotFoundError(
            f"{name!r} is neither a model that you built nor a download in {models}. `list` shows "
            "what there is; what is in the hub's cache, `hf cache` removes."
        )
    if found[0] in built and not record.holds(found[0]):
        raise UsageError(
            f"{found[0]} {record.doubt(found[0])}; remove it by hand if you are sure of it."
        )
    return found[0]
