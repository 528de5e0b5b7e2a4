"""`python -m mlc_rwkv_world perplexity`: how well a model predicts a text."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlc_rwkv_world import console, plots
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.cli.text_input import read_text
from mlc_rwkv_world.errors import NotFoundError, UsageError


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Runs the command; gives the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program, description="Measure how well a model predicts a text: lower is better."
    )
    parser.add_argument("model", help="an artifact (name or path), or a checkpoint's path")
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8; - for stdin")
    parser.add_argument(
        "--window",
        type=int,
        default=1024,
        help="tokens that are read from a fresh state; shorter windows are read together and "
        "faster, and less is known in each (default: 1024)",
    )
    parser.add_argument(
        "--quantization",
        help="for a checkpoint, which is built into a temporary folder (default: q0f32)",
    )
    parser.add_argument("--compute-dtype", default="auto", help="for a checkpoint, as in `build`")
    parser.add_argument("--fp32-layers", metavar="BLOCKS", help="for a checkpoint, as in `build`")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, metal, vulkan, opencl; cuda:1"
    )
    parser.add_argument("--model-lib", metavar="FILE", help="the compiled library to use")
    parser.add_argument(
        "--state",
        metavar="FILE",
        help="begin each window from a saved state, or a tuned one (.pth)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw how the loss falls along a window, as .svg or .png (needs matplotlib)",
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    from mlc_rwkv_world.artifact.search import find

    if options.plot is not None:
        plots.check(options.plot)
    text = read_text(options.text)
    for_checkpoints = ("quantization", "fp32_layers")
    try:
        find(options.model)
    except NotFoundError:
        path = expanded(options.model)
        if not path.exists():
            raise
        with tempfile.TemporaryDirectory() as folder:
            return _measure(options, str(_built(options, path, folder)), "cpu", text)
    for name in for_checkpoints:
        if getattr(options, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} is for checkpoints; {options.model} is built already."
            )
    return _measure(options, options.model, options.device, text)


def _built(options: argparse.Namespace, path: Path, folder: str) -> Path:
    """The checkpoint as an artifact for this CPU."""
    from mlc_rwkv_world.building import build

    console.complain("building it for this CPU ...")
    return build(
        path,
        target="llvm",
        quantization=options.quantization or "q0f32",
        output=folder,
        compute_dtype=options.compute_dtype,
        fp32_layers=options.fp32_layers,
        stock=False,
    ).folder


def _measure(options: argparse.Namespace, model: str, device: str, text: str) -> int:
    from mlc_rwkv_world.cli.opening import load
    from mlc_rwkv_world.numerics.perplexity import predict

    engine = load(model, device, model_lib=options.model_lib)
    state = engine.new_state()
    if options.state is not None:
        state.load(options.state)
    bar = console.Bar(unit="tok", what="predicting")
    try:
        found = predict(engine, text, window=options.window, state=state, progress=bar.show)
    finally:
        bar.close()
    if options.plot is not None:
        plots.losses(options.plot, engine.name, found.by_position)
    if options.json:
        fields = {
            "model": engine.name,
            "bits_per_byte": found.bits_per_byte,
            "perplexity": found.perplexity,
            "nats": found.nats,
            "tokens": found.tokens,
            "bytes": found.nbytes,
            "window": options.window,
        }
        # What is not finite has no form in JSON.
        known = {key: None if value in (float("inf"),) else value for key, value in fields.items()}
        console.say_json(known)
    else:
        console.say(f"{engine.name}: {found}")
    return 0
