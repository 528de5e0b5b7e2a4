"""Checks the carried libraries against float32 references, and measures them. See gpu.sh.

Models take turns, most important first: its short twin of two blocks is compared with a reference,
and then it is measured, unless it was wrong. So a run that is cut short has measured something.
Uses TVM's runtime, numpy and this package's references; torch and `rwkv` where they are installed.
Weights are random. Every check starts from device memory full of NaN. Ends with status 1 where a
check failed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_model import Model, Reference

Array = np.ndarray
PREFILLS = (1024, 128, 4096)
BATCHES = (1, 8, 64, 2, 4, 16, 32)
# Root mean square error over that of the reference, through two blocks, one in float16.
TOLERANCE = 4e-3
# What the slowest step of a run, a peer's, is given at most.
_LONGEST_PEER = 120.0


class Clock:
    """The seconds that a run may take, and which of its work did not get any."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 where none are."""
        return self.end - time.monotonic()

    def out(self, what: str) -> bool:
        """Whether there is no time for `what`, which then is said."""
        if self.left > 0:
            return False
        print(f"{what}: not measured, the time is over", flush=True)
        return True


def check(path: Path, device: Any, poison: int, lengths: list[int]) -> bool:
    """Whether logits and states of every function are those of the reference; prints each."""
    model = Model(path, device, poison=poison)
    reference, vocabulary = Reference(model), model.config.vocab_size
    longest = max(lengths)
    tokens = (np.arange(longest + 3) * 37 + 11) % vocabulary
    passed, worst = True, 0.0

    def compare(what: str, got: Any, wanted: Array) -> None:
        nonlocal passed, worst
        actual, known = got.numpy().reshape(wanted.shape), np.abs(wanted) < 1e20
        error = np.square((actual - wanted)[known]).mean() / np.square(wanted[known]).mean()
        fine = bool(np.isfinite(actual).all() and error**0.5 < TOLERANCE)
        passed, worst = passed and fine, max(worst, float(error**0.5))
        if not fine:
            print(f"  WRONG {path.stem} {what}: error {error**0.5:.1e}")

    def ends(*lengths: int) -> Array:
        return np.cumsum([0, *lengths])

    for length in lengths:
        state = model.states(1)
        exact = state.numpy()
        offsets = model.ids(ends(length))
        wanted = reference.run(tokens[:length], ends(length), exact)
        got = model.prefill(model.ids(tokens[:length]), offsets, state)
        compare(f"prefill {length}", got, wanted)
        compare(f"state after prefill {length}", state, exact)
        # The second step replays what the first one captured, between other slots.
        for step in range(3):
            token = tokens[length + step : length + step + 1]
            state.move()
            logits = model.decode(model.ids(token), state)
            compare(f"decode step {step}", logits, reference.run(token, ends(1), exact))
        compare("state after decode", state, exact)
    for batch in (b for b in (2, 9, 17, 64) if b <= model.config.max_batch_size):
        state = model.states(batch)
        exact = state.numpy()
        ids = (np.arange(batch) * 53 + 5) % vocabulary
        logits = model.decode(model.ids(ids), state)
        compare(f"batch of {batch}", logits, reference.run(ids, ends(*[1] * batch), exact))
        compare(f"state after a batch of {batch}", state, exact)
    several = ends(1, 3, longest // 4)
    state = model.states(len(several) - 1)
    exact = state.numpy()
    ids = tokens[: several[-1]]
    logits = model.prefill(model.ids(ids), model.ids(several), state)
    compare("prefill of several", logits, reference.run(ids, several, exact))
    compare("state after prefill of several", state, exact)
    print(f"{path.stem}: {'right' if passed else 'WRONG'}, worst error {worst:.1e}", flush=True)
    return passed


def seconds(run: Callable[[], Any], device: Any, least: float, rounds: int) -> float:
    """The best round's mean time of `run`, each round at least `least` seconds, without copies."""
    run()
    run()
    device.sync()
    begin = time.perf_counter()
    run()
    device.sync()
    count = max(1, int(least / max(time.perf_counter() - begin, 1e-6)))
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(count):
            run()
        device.sync()
        best = min(best, (time.perf_counter() - begin) / count)
    return best


def copy_bandwidth(device: Any, options: Any) -> float:
    """Bytes a second that a copy on the device reads and writes together."""
    import tvm

    nbytes: int = options.copy << 20
    source = tvm.runtime.empty((nbytes // 4,), "float32", device)
    target = tvm.runtime.empty((nbytes // 4,), "float32", device)
    copy = partial(source.copyto, target)
    return 2 * nbytes / seconds(copy, device, options.seconds, options.rounds)


def matrix_peak(options: Any) -> float | None:
    """float16 operations a second of torch's product of random [8192, 8192]; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))

    class Device:
        sync = staticmethod(torch.cuda.synchronize)

    time_taken = seconds(lambda: a @ b, Device, options.seconds, options.rounds)
    return 2 * 8192**3 / time_taken


def measure(
    path: Path, device: Any, options: Any, clock: Clock, bandwidth: float, peak: float | None
) -> None:
    """Prints the model's rows of the table, one as soon as it is known."""
    model = Model(path, device)
    name, vocabulary = path.stem, model.config.vocab_size
    batches = [b for b in options.batches if b <= model.config.max_batch_size]
    prefills = [n for n in options.prefills if n <= model.config.prefill_chunk_size]

    pace = (options.seconds, options.rounds)

    def decode(batch: int) -> None:
        state, ids = model.states(batch), model.ids(np.arange(batch) + 7)
        taken = seconds(partial(model.decode, ids, state), device, *pace)
        # A sequence's state is read once and written once.
        moved, work = model.nbytes + 2 * batch * model.state_bytes, 2 * batch * model.products
        share = f"{moved / taken / bandwidth:.0%} of copies"
        row(name, f"decode, batch {batch}", batch, taken, moved, work, share)

    def prefill(length: int) -> None:
        state, tokens = model.states(1), model.ids(np.arange(length) % vocabulary)
        step = partial(model.prefill, tokens, model.ids(np.array([0, length])), state)
        taken, work = seconds(step, device, *pace), 2 * length * model.products
        share = f"{work / taken / peak:.0%} of the peak" if peak else ""
        row(name, f"prefill, {length}", length, taken, model.nbytes, work, share)

    # One figure of each kind before there is a second.
    first = [*((decode, n) for n in batches[:1]), *((prefill, n) for n in prefills[:1])]
    rest = [*((decode, n) for n in batches[1:]), *((prefill, n) for n in prefills[1:])]
    for kind, number in [*first, *rest]:
        if clock.out(f"{name}, {kind.__name__} {number}"):
            return
        kind(number)


HEADER = "| model | what | tokens | a call | weights and state | products | share |"


def row(
    name: str, what: str, tokens: int, taken: float, moved: float, work: float, share: str = ""
) -> None:
    """One row of the Markdown table."""
    print(
        f"| {name} | {what} | {tokens / taken:.1f} tok/s | {taken * 1e3:.3f} ms "
        f"| {moved / taken / 1e9:.0f} GB/s | {work / taken / 1e12:.1f} TFLOP/s | {share} |",
        flush=True,
    )


def measure_peer(config: dict[str, Any], name: str, options: Any, clock: Clock) -> None:
    """The same shape, random, in the package `rwkv`, in a process of its own that may be ended."""
    lengths = ",".join(map(str, options.prefills[:1]))
    command = [sys.executable, str(Path(__file__).parent / "gpu_peer.py"), name]
    command += [json.dumps(config), "--prefills", lengths, "--seconds", str(options.seconds)]
    command += ["--rounds", str(options.rounds)]
    command += ["--strategy", options.peer]
    try:
        subprocess.run(command, check=True, timeout=min(_LONGEST_PEER, clock.left))
    except subprocess.CalledProcessError as error:
        print(f"rwkv, {name}: not measured: it ended with {error.returncode}", flush=True)
    except subprocess.TimeoutExpired:
        print(f"rwkv, {name}: not measured: it takes too long", flush=True)


def numbers(text: str) -> list[int]:
    """Comma-separated."""
    return [int(n) for n in text.split(",") if n]


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("folder", type=Path, help="what `gpu.sh pack` made, unpacked")
    made.add_argument("--minutes", type=float, default=8, help="after which no more is begun")
    made.add_argument("--models", default="", help="comma-separated beginnings of names")
    made.add_argument("--seconds", type=float, default=0.15, help="of each round of a measurement")
    made.add_argument("--rounds", type=int, default=3, help="of which the best counts")
    made.add_argument("--prefills", type=numbers, default=list(PREFILLS), metavar="N,...")
    made.add_argument("--batches", type=numbers, default=list(BATCHES), metavar="N,...")
    made.add_argument("--lengths", type=numbers, default=[1, 7, 70, 200], metavar="N,...")
    made.add_argument("--poison", type=int, default=4096, help="MiB of NaN before each check")
    made.add_argument("--copy", type=int, default=2048, help="MiB that the bandwidth test copies")
    made.add_argument("--check-only", action="store_true")
    made.add_argument("--peer", default="cuda fp16", help="strategy of `rwkv`; '' leaves it out")
    return made


def open_device() -> Any:
    """TVM's first GPU; ends the program where there is none."""
    import tvm

    # Without its compiler TVM loads no device's library by itself.
    runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(runtime))
    except OSError as error:
        sys.exit(f"{error}: is NVIDIA's driver installed?")
    device = tvm.cuda(0)
    if not device.exist:
        sys.exit("TVM finds no CUDA device here: is NVIDIA's driver installed?")
    print(f"{device.device_name}, Python {platform.python_version()}, TVM {tvm.__version__}")
    return device


def run(options: Any, device: Any) -> bool:
    """Checks and measures what `plan.json` lists, in its order; whether all checks passed."""
    clock = Clock(60 * options.minutes)
    plan = json.loads((options.folder / "plan.json").read_text())
    wanted = tuple(options.models.split(","))
    chosen = [step for step in plan if step["model"].startswith(wanted)]
    if not chosen:
        sys.exit(f"{options.folder} has no model that begins with {options.models!r}")
    bandwidth, peak = float("nan"), None
    if not options.check_only:
        bandwidth, peak = copy_bandwidth(device, options), matrix_peak(options)
        known = f"{peak / 1e12:.0f} TFLOP/s" if peak else "no torch on a GPU, no figure"
        print(f"copy bandwidth, read and written: {bandwidth / 1e9:.0f} GB/s")
        print(f"float16 matrix peak: {known}")
        print(f"{HEADER}\n{'|---' * HEADER.count(' | ')}|---|", flush=True)
    passed, checked = True, 0
    for step in chosen:
        if clock.out(step["model"]):
            continue
        if "peer" in step:
            if options.peer and not options.check_only:
                measure_peer(step["peer"], step["model"], options, clock)
            continue
        models = options.folder / "models"
        right = check(models / step["check"], device, options.poison << 20, options.lengths)
        passed, checked = passed and right, checked + 1
        if right and not options.check_only:
            measure(models / step["measure"], device, options, clock, bandwidth, peak)
    print(f"{checked} models checked, {'all right' if passed else 'NOT ALL RIGHT'}")
    return passed


def main() -> None:
    """Reads the command line; status 1 where a model was wrong."""
    options = parser().parse_args()
    sys.exit(0 if run(options, open_device()) else 1)


if __name__ == "__main__":
    main()
