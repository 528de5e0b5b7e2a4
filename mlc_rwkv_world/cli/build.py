"""`python -m mlc_llm.build` and `python -m mlc_rwkv_world build`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlc_rwkv_world import console
from mlc_rwkv_world.builder.options import SOURCE, Flag, flags
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.reporter import Reporter

if TYPE_CHECKING:
    from mlc_rwkv_world.builder.assemble import Artifact

# Options of mlc_llm.build from 2023 that mean nothing for a recurrent model on one device.
_WITHOUT_MEANING = {
    "--num-shards": "the model runs on one device",
    "--use-presharded-weights": "the model runs on one device",
    "--sep-embed": "embedding and model are always separate functions as well",
    "--enable-batching": "batched functions are always built",
    "--use-flash-attn-mqa": "there is no attention",
    "--use-vllm-attention": "there is no attention",
    "--no-cutlass-attn": "there is no attention",
    "--no-cutlass-norm": "kernels are generated, none come from a library",
    "--no-cublas": "kernels are generated, none come from a library",
    "--use-cuda-graph": "decode steps on CUDA are always captured as graphs",
    "--quantization-mode": "--quantization names the whole format",
}


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Builds one artifact; returns the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program,
        description="Build an RWKV World checkpoint into a model that mlc_chat_cli runs.",
    )
    groups: dict[str, Any] = {}
    for name, flag in flags():
        if flag.group is None:
            _add(parser, name, flag)
            continue
        if flag.group not in groups:
            required = flag.group == SOURCE
            groups[flag.group] = parser.add_mutually_exclusive_group(required=required)
        _add(groups[flag.group], name, flag)
    for option in _WITHOUT_MEANING:
        parser.add_argument(option, nargs="?", const="", help=argparse.SUPPRESS)
    return parser


def _add(place: Any, name: str, flag: Flag) -> None:
    """Adds a flag to a parser or to a group; what is not given is not among the results."""
    usual: dict[str, Any] = {"dest": name, "help": flag.help, "default": argparse.SUPPRESS}
    if flag.sets is not None:
        place.add_argument(flag.name, action="store_const", const=flag.sets, **usual)
    else:
        how = {"metavar": flag.metavar, "type": flag.convert, "choices": flag.choices}
        place.add_argument(flag.name, **how, **usual)


class _Console(Reporter):
    """Stages as lines; progress as a bar where there is a terminal."""

    def __init__(self) -> None:
        self._bar = console.Bar()

    def stage(self, text: str) -> None:
        self.close()
        console.say(f"{text} ...")

    def progress(self, done: int, total: int, what: str) -> None:
        self._bar.show(done, total, what)

    def close(self) -> None:
        self._bar.close()


def _run(arguments: argparse.Namespace) -> int:
    for option, reason in _WITHOUT_MEANING.items():
        if getattr(arguments, option[2:].replace("-", "_")) is not None:
            console.complain(f"note: {option} has no effect here: {reason}.")

    from mlc_rwkv_world.building import build

    started = time.monotonic()
    reporter = _Console()
    given = {name: value for name, value in vars(arguments).items() if name in dict(flags())}
    try:
        artifact = build(**given, reporter=reporter)
    finally:
        reporter.close()
    _summarize(artifact, time.monotonic() - started)
    return 0


def _types(artifact: Artifact) -> str:
    from mlc_rwkv_world.model.fp32_layers import spelled

    if artifact.compute_dtype == "float32" or not artifact.fp32_layers:
        return artifact.compute_dtype
    return f"{artifact.compute_dtype}, blocks {spelled(artifact.fp32_layers)} in float32,"


def _summarize(artifact: Artifact, seconds: float) -> None:
    from mlc_rwkv_world.artifact.layout import LIBRARY_ENDINGS
    from mlc_rwkv_world.artifact.search import spelled

    for note in artifact.notes:
        console.say(f"note: {note}")
    console.say(f"Built {artifact.folder} in {seconds:.0f} s")
    if artifact.params.is_dir():
        console.say(
            f"  weights  {artifact.params}  {artifact.nbytes / 1e6:.1f} MB, "
            f"{artifact.bits_per_weight:.2f} bits per weight"
        )
    if artifact.template is not None:
        console.say(f"  template {artifact.template}")
    for path in artifact.libraries:
        console.say(f"  library  {path}  {path.stat().st_size / 1e6:.1f} MB")
    if artifact.libraries:
        console.say(f"  computes in {_types(artifact)} on {artifact.target}")
    if artifact.params.is_dir() and any(
        path.suffix in LIBRARY_ENDINGS for path in artifact.libraries
    ):
        console.say(f"Chat with it:  mlc_chat_cli --model {spelled(artifact.folder)}")
