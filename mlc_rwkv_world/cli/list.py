"""`rwkv-world list`: the checkpoints and the built models of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from mlc_rwkv_world import console
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.cli import status


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command; gives the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program,
        description="Show the models that you built on this machine, and the checkpoints in "
        "DIR/models and in the hub's cache.",
    )
    parser.add_argument("--artifact-path", default="dist", metavar="DIR", help="default: dist")
    parser.add_argument("--json", action="store_true", help="print a list, as JSON")
    return parser


def _run(options: argparse.Namespace) -> int:
    from mlc_rwkv_world.cli.inventory import Entry, artifacts, checkpoints

    models = expanded(options.artifact_path) / "models"
    entries = [*artifacts(), *checkpoints(models)]
    if options.json:
        console.say_json([asdict(entry) | {"path": str(entry.path)} for entry in entries])
        return 0
    if not entries:
        console.say("There is none yet. `rwkv-world build --hf-path OWNER/NAME` makes one.")
        return 0

    def row(entry: Entry) -> tuple[str, ...]:
        version = "?" if entry.version is None else f"RWKV-{entry.version}"
        size = f"{entry.size / 1e6:.1f} MB"
        return (entry.kind, entry.name, version, entry.format or "?", size, str(entry.path))

    rows = [("kind", "name", "version", "format", "size", "where"), *map(row, entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells, entry in zip(rows, [None, *entries], strict=True):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        fault = None if entry is None else entry.fault
        console.say(line.rstrip(), *([] if fault is None else [f"  {fault}"]))
    return 0
