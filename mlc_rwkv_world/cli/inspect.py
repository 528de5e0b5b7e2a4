"""`python -m mlc_rwkv_world inspect`: a model's values, operation by operation."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence

from mlc_rwkv_world import console
from mlc_rwkv_world.artifact.output import Kind, Output
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.cli.text_input import read_text
from mlc_rwkv_world.errors import UsageError

# Models of more blocks are shown in full on request only.
_SHOWN_IN_FULL = 6
PICTURE = Kind(
    "picture of inspect",
    re.compile(rb"<svg [^>]*>\n<rect [^>]*>\n<text [^>]*>.*: share of float16's range</text>"),
)
NUMBERS = Kind(
    "report of inspect",
    re.compile(rb'\{\n "model": ".*",\n "quantization": ".*",\n "compute_dtype": "float'),
)


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Runs the command; gives the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program,
        description="Run prompts through a model and show, operation by operation, how near its "
        "values come to the end of float16's range, and which blocks need float32.",
    )
    parser.add_argument("model", help="an artifact (name or path), or a checkpoint's path")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", action="append", metavar="TEXT", help="may be given repeatedly")
    text.add_argument("--file", metavar="FILE", help="one prompt: the whole file")
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="compare with this artifact, or with this checkpoint in float32 (default: the "
        "model's own weights in float32)",
    )
    parser.add_argument(
        "--quantization", help="how to store a checkpoint's weights (default: q0f16)"
    )
    parser.add_argument(
        "--compute-dtype",
        default="auto",
        help="float16 or float32 (default: what the format computes in on a GPU)",
    )
    parser.add_argument("--fp32-layers", metavar="BLOCKS", help="as in `build`")
    parser.add_argument(
        "--float16-keys", action="store_true", help="of a checkpoint, as in `build`"
    )
    parser.add_argument("--all", action="store_true", help="show every operation of every block")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON; - for stdout")
    parser.add_argument("--picture", metavar="FILE.svg", help="write a heat map")
    return parser


def _run(options: argparse.Namespace) -> int:
    picture = None if options.picture is None else Output(expanded(options.picture), PICTURE)
    if picture is not None and picture.path.suffix != ".svg":
        raise UsageError(f"--picture {options.picture}: pictures are SVG; give a name ending .svg.")
    numbers = None if options.json in (None, "-") else Output(expanded(options.json), NUMBERS)
    for output in (picture, numbers):
        if output is not None:
            output.check()
    from mlc_rwkv_world.numerics.heatmap import heatmap
    from mlc_rwkv_world.numerics.inspection import inspect
    from mlc_rwkv_world.numerics.prompts import BUILT_IN
    from mlc_rwkv_world.numerics.subject import open_subject
    from mlc_rwkv_world.numerics.table import table

    texts = BUILT_IN
    if options.prompt:
        texts = tuple(options.prompt)
    elif options.file is not None:
        texts = (read_text(options.file),)
    subject = open_subject(
        options.model,
        quantization=options.quantization,
        compute_dtype=options.compute_dtype,
        fp32_layers=options.fp32_layers,
        float32_keys=not options.float16_keys,
    )

    bar = console.Bar(what="block")

    def stage(text: str) -> None:
        console.complain(f"{text} ...")

    try:
        report = inspect(
            subject, texts=texts, against=options.against, progress=bar.show, stage=stage
        )
    finally:
        bar.close()
    if picture is not None:
        picture.write(heatmap(report).encode())
    if options.json == "-":
        console.say_json(report.as_dict(), indent=1)
        return 0
    if numbers is not None:
        # In ASCII: a model's name may have no form in UTF-8.
        text = json.dumps(report.as_dict(), indent=1, allow_nan=False)
        numbers.write(f"{text}\n".encode())
    full = options.all or report.num_hidden_layers <= _SHOWN_IN_FULL
    console.say(*table(report, everything=full))
    return 0
