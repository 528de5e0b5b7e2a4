"""`rwkv-world pull`: download a checkpoint, to build it later or elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

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
        description="Download a model from the hub, into DIR/models unless it is there or in the "
        "hub's cache, and print where it lies.",
    )
    parser.add_argument("model", help="owner/name, owner/name/file.pth, or an address")
    parser.add_argument("--revision", metavar="REV", help="a branch, tag or commit")
    parser.add_argument("--artifact-path", default="dist", metavar="DIR", help="default: dist")
    return parser


def _run(options: argparse.Namespace) -> int:
    from mlc_rwkv_world.checkpoint import fetch

    models = expanded(options.artifact_path) / "models"
    console.say(fetch(options.model, models, revision=options.revision))
    return 0
