"""`rwkv-world complete`: raw text in, what follows it out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing

from mlc_rwkv_world import console
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.cli.sampling import add_sampling, given
from mlc_rwkv_world.cli.text_input import read_text


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command; gives the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program,
        description="Go on with a text, to its end or for --max-tokens tokens. No template is "
        "written around it.",
    )
    parser.add_argument("model", help="name, folder, params folder or configuration of an artifact")
    parser.add_argument("file", nargs="?", default="-", help="UTF-8 text (default: standard input)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, metal, vulkan, opencl; cuda:1"
    )
    parser.add_argument("--model-lib", metavar="FILE", help="the compiled library to use")
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU")
    parser.add_argument("--state", metavar="FILE", help="begin from a saved or tuned state")
    add_sampling(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    from mlc_rwkv_world.cli.start import start_light

    start_light()
    from mlc_rwkv_world.cli.opening import load

    text = read_text(options.file)
    engine = load(
        options.model, options.device, model_lib=options.model_lib, threads=options.threads
    )
    state = engine.new_state()
    if options.state is not None:
        state.load(options.state)
    pieces = engine.generate(
        text,
        **given(options),
        max_tokens=options.max_tokens,
        stop=options.stop or (),
        seed=options.seed,
        state=state,
    )
    with closing(pieces):
        for piece in pieces:
            console.utter(piece)
    console.utter("\n")
    return 0
