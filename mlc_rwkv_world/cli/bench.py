"""`python -m mlc_rwkv_world bench`: a model's speed, beside what this machine can do at most."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mlc_rwkv_world import console, plots
from mlc_rwkv_world.artifact.output import Kind, Output
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.errors import UsageError

if TYPE_CHECKING:
    from mlc_rwkv_world.compiler.limits import Limits
    from mlc_rwkv_world.runtime import Engine

_NUMBER = re.compile("[1-9][0-9]{0,5}")
KIND = Kind(
    "result of bench",
    re.compile(rb'\{\n  "model": ".*",\n  "device": ".*",\n  "threads": \d+,\n  "bandwidth": '),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: `tokens` in `seconds`, the median of several times."""

    what: str
    tokens: int
    seconds: float
    read: int
    operations: int

    def as_dict(self, limits: Limits | None) -> dict[str, Any]:
        """Speeds, and their shares of the limits."""
        values: dict[str, Any] = {
            "what": self.what,
            "tokens_per_second": self.tokens / self.seconds,
            "gigabytes_per_second": self.read / self.seconds / 1e9,
            "gigaflops": self.operations / self.seconds / 1e9,
        }
        if limits is not None:
            values["share_of_bandwidth"] = self.read / self.seconds / limits.read
            values["share_of_float32_peak"] = self.operations / self.seconds / limits.float32
        return values


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command; gives the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(prog=program, description="Measure a built model's speed.")
    parser.add_argument("model", help="name, folder, params folder or configuration of an artifact")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--model-lib", metavar="FILE", help="the compiled library to use")
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU")
    parser.add_argument("--prefill", default="16,128,512", metavar="N,N", help="prompt lengths")
    parser.add_argument("--batch", default="1,2,4,8", metavar="N,N", help="sequences that decode")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times for each median")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="tokens of a round")
    parser.add_argument("--no-limits", action="store_true", help="do not measure the machine")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw them, as .svg or .png (needs matplotlib)"
    )
    return parser


def _numbers(text: str, option: str) -> list[int]:
    parts = [part for part in text.split(",") if part]
    if not parts or not all(_NUMBER.fullmatch(part) for part in parts):
        raise UsageError(
            f"{option} {text[:40]!r}: give numbers from 1 to 999999, separated by commas."
        )
    return [int(part) for part in parts]


def _run(options: argparse.Namespace) -> int:
    from mlc_rwkv_world.cli.opening import load
    from mlc_rwkv_world.runtime.device import kind_of
    from mlc_rwkv_world.runtime.threads import use

    lengths = _numbers(options.prefill, "--prefill")
    batches = _numbers(options.batch, "--batch")
    if options.rounds < 1 or options.steps < 1:
        raise UsageError("--rounds and --steps are at least 1.")
    if options.plot is not None:
        plots.check(options.plot)
    output = Output(expanded(options.json), KIND) if options.json else None
    if output is not None:
        output.check()
    engine = load(
        options.model, options.device, model_lib=options.model_lib, threads=options.threads
    )
    on_cpu = kind_of(engine.device) == "cpu"
    threads = use(options.threads) if on_cpu else 1
    limits = None
    if on_cpu and not options.no_limits:
        from mlc_rwkv_world.compiler.limits import measure

        limits = measure(threads)
    rows = [_decode(engine, size, options.rounds, options.steps) for size in batches]
    rows += [_prefill(engine, length, options.rounds) for length in lengths]
    result = {
        "model": engine.name,
        "device": str(engine.device),
        "threads": threads,
        "bandwidth": None if limits is None else limits.read / 1e9,
        "float32_peak": None if limits is None else limits.float32 / 1e9,
        "results": [row.as_dict(limits) for row in rows],
    }
    _show(result)
    if options.plot is not None:
        plots.speeds(options.plot, result)
    if output is not None:
        output.write((json.dumps(result, indent=2) + "\n").encode())
    return 0


def _decode(engine: Engine, size: int, rounds: int, steps: int) -> Row:
    read, operations = work(engine)
    states = [engine.new_state() for _ in range(size)]
    tokens = list(range(1, size + 1))

    def run() -> None:
        for _ in range(steps):
            engine.decode_batch(tokens, states)

    passes = math.ceil(size / engine.metadata.max_batch_size)
    seconds = _median(run, rounds)
    name = f"decode, batch {size}"
    return Row(name, size * steps, seconds, read * steps * passes, operations * size * steps)


def _prefill(engine: Engine, length: int, rounds: int) -> Row:
    read, operations = work(engine)
    head = 2 * engine.metadata.vocab_size * engine.metadata.hidden_size
    ids = [1 + i % 60000 for i in range(length)]
    seconds = _median(lambda: engine.prefill(ids, engine.new_state()), rounds)
    passes = math.ceil(length / engine.metadata.prefill_chunk_size)
    done = (operations - head) * length + head * passes
    return Row(f"prefill, {length} tokens", length, seconds, read * passes, done)


def _median(run: Callable[[], object], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def work(engine: Engine) -> tuple[int, int]:
    """Bytes of weights that a step reads, and operations for one token; the embedding is a row."""
    from mlc_rwkv_world.artifact.index import ITEM_SIZES
    from mlc_rwkv_world.storage import format_named

    read = operations = 0
    matrix = format_named(engine.metadata.quantization).matrix
    for parameter in engine.metadata.parameters:
        if "embeddings" in parameter.name:
            continue
        count = math.prod(parameter.shape)
        read += count * ITEM_SIZES[parameter.dtype]
        if len(parameter.shape) == 2 and parameter.name.endswith("." + matrix.names[0]):
            operations += 2 * count * matrix.per_element
    return read, operations


def _show(result: dict[str, Any]) -> None:
    console.say(f"{result['model']} on {result['device']}, {result['threads']} threads")
    if result["bandwidth"] is not None:
        console.say(
            f"This machine reads {result['bandwidth']:.1f} GB/s and does "
            f"{result['float32_peak']:.0f} GFLOP/s in float32."
        )
    console.say(f"{'':24}{'tok/s':>10}{'GB/s':>8}{'share':>7}{'GFLOP/s':>9}{'share':>7}")
    for row in result["results"]:
        shares = [row.get("share_of_bandwidth"), row.get("share_of_float32_peak")]
        bandwidth, peak = ("" if s is None else f"{100 * s:.0f}%" for s in shares)
        console.say(
            f"{row['what']:24}{row['tokens_per_second']:>10.1f}"
            f"{row['gigabytes_per_second']:>8.2f}{bandwidth:>7}"
            f"{row['gigaflops']:>9.1f}{peak:>7}"
        )
