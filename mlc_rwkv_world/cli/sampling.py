"""The options of sampling, which several commands take."""

from __future__ import annotations

import argparse
from typing import Any

from mlc_rwkv_world.artifact.sampling_options import SAMPLING


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options to `parser`, as a group."""
    group = parser.add_argument_group("sampling (the model's own values where not given)")
    for name, read in SAMPLING.items():
        metavar = "X" if read is float else "N"
        group.add_argument(f"--{name.replace('_', '-')}", type=read, metavar=metavar)
    group.add_argument("--seed", type=int, metavar="N", help="repeat the same choices")
    group.add_argument(
        "--max-tokens", "--max-gen-len", type=int, metavar="N", help="longest answer"
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before this text too; may be given repeatedly",
    )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The values for `Sampling`, None where one was not given."""
    return {name: getattr(options, name) for name in SAMPLING}
