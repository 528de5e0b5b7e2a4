"""Checks the carried libraries against a float32 reference, then measures them. See gpu.sh.

Uses TVM's runtime, numpy and this package's reference; torch and `rwkv` where they are installed.
Weights are random. Every check starts from device memory full of NaN. Ends with status 1 where a
check fails.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Stored, format_named
from mlc_rwkv_world.storage.groups import dequantize
from mlc_rwkv_world.versions.precision import FLOAT32
from mlc_rwkv_world.versions.references import run
from mlc_rwkv_world.versions.rwkv4 import reference as rwkv4

Array = np.ndarray
PREFILLS = (128, 1024, 4096)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Root mean square error over that of the reference, through two blocks, one in float16.
TOLERANCE = 4e-3
ROWS = 5
FRESH = np.array([0, 0, 0, -1e30, 0], np.float32)


class Model:
    """A library on the device with random weights."""

    def __init__(self, path: Path, device: Any, seed: int = 0, poison: int = 0) -> None:
        import tvm
        import tvm_ffi
        from tvm.runtime import vm

        self.device, self.tensor = device, tvm.runtime.tensor
        module = tvm.runtime.load_module(str(path))
        _poison(device, poison)
        self.machine = vm.VirtualMachine(module, device)
        described = json.loads(self.machine["_metadata"]())
        ours = described["rwkv_world"]
        self.quantization: str = described["quantization"]
        self.layers, self.width = ours["num_hidden_layers"], ours["hidden_size"]
        self.vocabulary, self.chunk = ours["vocab_size"], described["prefill_chunk_size"]
        self.eps, self.rescale = ours["layer_norm_epsilon"], ours["rescale_every"]
        self.most = described["max_batch_size"]
        self.specs = described["params"]
        self.values = _Random(seed, self.rescale)
        self.weights = tvm_ffi.convert([self._upload(spec) for spec in self.specs])
        self.pool: Any = None

    def _upload(self, spec: dict[str, Any]) -> Any:
        return self.tensor(self.values.of(spec), self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that decoding one token reads: all but the embedding's other rows."""
        return sum(
            int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize
            for spec in self.specs
            if "embeddings" not in spec["name"]
        )

    @property
    def products(self) -> int:
        """Multiplications of one token in the blocks' products."""
        return int(13 * self.layers * self.width**2)

    def states(self, count: int) -> States:
        """So many states that have read nothing; those that were given before are gone."""
        # A captured graph holds the pool's address.
        if self.pool is None:
            fresh = np.empty((2 * self.most, self.layers, ROWS, self.width), np.float32)
            fresh[:] = FRESH[:, None]
            self.fresh = self.tensor(fresh, self.device)
            self.pool = self.tensor(fresh, self.device)
        self.fresh.copyto(self.pool)
        return States(self, count)

    def ids(self, values: Array) -> Any:
        return self.tensor(values.astype(np.int32), self.device)

    def prefill(self, ids: Any, offsets: Any, states: States) -> Any:
        function = self.machine["rwkv_world_prefill"]
        return function(ids, offsets, states.slots, self.pool, self.weights)[0]

    def decode(self, ids: Any, states: States) -> Any:
        name = "rwkv_world_decode" if ids.shape[0] == 1 else "rwkv_world_batch_decode"
        return self.machine[name](ids, states.slots, self.pool, self.weights)[0]


class States:
    """Slots of a model's pool, which are written where they are read until they `move`."""

    def __init__(self, model: Model, count: int) -> None:
        self.model, self.count, self.at = model, count, 0
        self.slots = self._moving(0)

    def move(self) -> None:
        """Lets the next call write other slots than it reads."""
        self.slots = self._moving(self.model.most if self.at == 0 else 0)

    def numpy(self) -> Array:
        """The states [B, L, R, D] that the last call has written."""
        content: Array = self.model.pool.numpy()[self.at : self.at + self.count]
        return content

    def _moving(self, to: int) -> Any:
        numbers = np.arange(self.count)
        slots = np.stack([self.at + numbers, to + numbers], axis=1)
        self.at = to
        return self.model.ids(slots)


class _Random:
    """Weights for a parameter's name, shape and type that keep activations near 1.

    Large matrices repeat some million values, which takes seconds and not minutes for 7B.
    """

    def __init__(self, seed: int, rescale: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rescale = rescale
        self.pool = {
            "uint32": self.rng.integers(0, 1 << 32, 1 << 22, np.uint32),
            "float": self.rng.standard_normal(1 << 22, np.float32),
        }

    def of(self, spec: dict[str, Any]) -> Array:
        name, shape, dtype = spec["name"], tuple(spec["shape"]), spec["dtype"]
        if dtype == "uint32":
            return self._repeat("uint32", shape)
        if name.endswith("q_scale"):
            # Four-bit values have a variance of about 21.
            inner = shape[1] * 32
            scale = self.rng.uniform(0.5, 1.5, shape) * (21 * inner) ** -0.5
            scaled: Array = scale * self._halving(name)
            return scaled.astype(dtype)
        if len(shape) == 2:
            factor = np.float32(shape[1] ** -0.5 * self._halving(name))
            matrix: Array = self._repeat("float", shape) * factor
            return matrix.astype(dtype)
        if name.endswith("time_decay"):
            return self.rng.uniform(-6, 1, shape).astype(dtype)
        if ("ln" in name) and name.endswith("weight"):
            return self.rng.uniform(0.8, 1.2, shape).astype(dtype)
        return self.rng.uniform(0, 1, shape).astype(dtype)

    def _repeat(self, kind: str, shape: tuple[int, ...]) -> Array:
        pool, count = self.pool[kind], int(np.prod(shape))
        start = int(self.rng.integers(0, len(pool)))
        return np.resize(np.roll(pool, start), count).reshape(shape)

    def _halving(self, name: str) -> float:
        """What rescaling divides a block's output weights by."""
        if not self.rescale or not any(p in name for p in ("attention.output", "forward.value")):
            return 1.0
        return 0.5 ** (int(name.split("blocks.")[1].split(".")[0]) // self.rescale)


def _poison(device: Any, nbytes: int) -> None:
    """Leaves NaN in device memory that is given back, and then given to the model."""
    import tvm

    piece = np.full(1 << 20, np.nan, np.float32)
    held = [tvm.runtime.tensor(piece, device) for _ in range(nbytes // piece.nbytes)]
    device.sync()
    del held


class Weights:
    """The same weights for the model's reference."""

    def __init__(self, model: Model) -> None:
        stored = zip((spec["name"] for spec in model.specs), model.weights, strict=True)
        self.arrays: dict[str, Array] = {name: tensor.numpy() for name, tensor in stored}
        self.how: Stored = format_named(model.quantization).matrix

    def vector(self, name: str) -> Array:
        return self.arrays[name]

    def rows(self, name: str, ids: Array) -> Array:
        chosen: Array = self._matrix(name)[ids]
        return chosen

    def slices(self, name: str) -> Iterator[Array]:
        yield self._matrix(name)

    def _matrix(self, name: str) -> Array:
        if name in self.arrays:
            return self.arrays[name]
        layer = name.removesuffix("weight")
        return dequantize([self.arrays[layer + one] for one in self.how.names], self.how)


class Reference:
    """The same model on the CPU: its reference in float32, with weights as they are stored."""

    def __init__(self, model: Model) -> None:
        self.weights = Weights(model)
        self.config = ModelConfig(
            hidden_size=model.width,
            intermediate_size=4 * model.width,
            num_hidden_layers=model.layers,
            vocab_size=model.vocabulary,
            layer_norm_epsilon=model.eps,
            rescale_every=model.rescale,
        )

    def run(self, ids: Array, state: Array) -> Array:
        """ids [T], state [L, 5, D], which it updates; the logits [V] after the last token."""
        offsets = np.array([0, len(ids)])
        logits, after = run(rwkv4, self.config, self.weights, ids, offsets, state[None], FLOAT32)
        state[:] = after[0]
        last: Array = logits[0]
        return last


def check(path: Path, device: Any, poison: int, lengths: list[int]) -> bool:
    """Whether logits and states of every function are those of the reference; prints each."""
    model = Model(path, device, poison=poison)
    reference = Reference(model)
    longest = max(lengths)
    tokens = (np.arange(longest + 1) * 37 + 11) % model.vocabulary
    passed = True

    def compare(what: str, got: Any, wanted: Array) -> None:
        nonlocal passed
        actual, known = got.numpy().reshape(wanted.shape), np.abs(wanted) < 1e20
        error = np.square((actual - wanted)[known]).mean() / np.square(wanted[known]).mean()
        fine = bool(np.isfinite(actual).all() and error**0.5 < TOLERANCE)
        passed = passed and fine
        print(f"  {'ok  ' if fine else 'FAIL'} {path.stem} {what}: error {error**0.5:.1e}")

    for length in lengths:
        state = model.states(1)
        exact = state.numpy()[0]
        offsets = model.ids(np.array([0, length]))
        wanted = reference.run(tokens[:length], exact)
        compare(
            f"prefill {length}", model.prefill(model.ids(tokens[:length]), offsets, state), wanted
        )
        compare(f"state after prefill {length}", state, exact)
        # The second step replays what the first one captured, between other slots.
        for step in range(3):
            token = tokens[length : length + 1] + step
            state.move()
            logits = model.decode(model.ids(token), state)
            compare(f"decode step {step}", logits, reference.run(token, exact))
        compare("state after decode", state, exact)
    for batch in (b for b in (2, 9, 17, 64) if b <= model.most):
        state = model.states(batch)
        exact = state.numpy()
        ids = (np.arange(batch) * 53 + 5) % model.vocabulary
        logits = model.decode(model.ids(ids), state)
        wanted = np.stack([reference.run(ids[i : i + 1], exact[i]) for i in range(batch)])
        compare(f"batch of {batch}", logits, wanted)
        compare(f"state after a batch of {batch}", state, exact)
    ends = np.array([0, 1, 4, 4 + longest // 4])
    state = model.states(len(ends) - 1)
    exact = state.numpy()
    ids = tokens[: ends[-1]]
    logits = model.prefill(model.ids(ids), model.ids(ends), state)
    wanted = np.stack(
        [reference.run(ids[a:b], s) for a, b, s in zip(ends[:-1], ends[1:], exact, strict=True)]
    )
    compare("prefill of several", logits, wanted)
    compare("state after prefill of several", state, exact)
    return passed


def seconds(run: Callable[[], Any], device: Any, least: float, rounds: int = 3) -> float:
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


def copy_bandwidth(device: Any, least: float, nbytes: int) -> float:
    """Bytes a second that a copy on the device reads and writes together."""
    import tvm

    source = tvm.runtime.empty((nbytes // 4,), "float32", device)
    target = tvm.runtime.empty((nbytes // 4,), "float32", device)
    return 2 * nbytes / seconds(lambda: source.copyto(target), device, least)


def matrix_peak(least: float) -> float | None:
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

    time_taken = seconds(lambda: a @ b, Device, least)
    return 2 * 8192**3 / time_taken


def measure(path: Path, device: Any, options: Any, bandwidth: float, peak: float | None) -> None:
    """Prints the model's rows of the table."""
    model = Model(path, device)
    name = path.stem
    ids = model.ids(np.array([7]))
    for batch in (b for b in options.batches if b <= model.most):
        state, ids = model.states(batch), model.ids(np.arange(batch) + 7)
        taken = seconds(partial(model.decode, ids, state), device, options.seconds)
        # A sequence's state is read once and written once.
        moved = model.nbytes + 2 * batch * model.layers * ROWS * model.width * 4
        row(name, f"decode, batch {batch}", batch, taken, moved, 2 * batch * model.products)
        share = moved / taken / bandwidth
        print(f"    {share:.0%} of the measured copy bandwidth")
    for length in (n for n in options.prefills if n <= model.chunk):
        state, tokens = model.states(1), model.ids(np.arange(length) % model.vocabulary)
        offsets = model.ids(np.array([0, length]))
        step = partial(model.prefill, tokens, offsets, state)
        taken = seconds(step, device, options.seconds)
        work = 2 * length * model.products
        row(name, f"prefill, {length}", length, taken, model.nbytes, work)
        if peak:
            print(f"    {work / taken / peak:.0%} of the measured matrix peak")


def row(name: str, what: str, tokens: int, taken: float, moved: float, work: float) -> None:
    """One row of the Markdown table."""
    print(
        f"| {name} | {what} | {tokens / taken:.1f} tok/s | {taken * 1e3:.3f} ms "
        f"| {moved / taken / 1e9:.0f} GB/s | {work / taken / 1e12:.1f} TFLOP/s |"
    )


def measure_peer(shape: tuple[int, int, int], options: Any) -> None:
    """The same shape, random, in the package `rwkv` with its CUDA kernels; says why where not."""
    layers, width, vocabulary = shape
    try:
        import torch

        os.environ.update(RWKV_JIT_ON="1", RWKV_CUDA_ON="1", RWKV_V7_ON="0")
        from rwkv.model import RWKV
    except Exception as error:
        print(f"rwkv: not measured: {error}")
        return
    if not torch.cuda.is_available():
        print("rwkv: not measured: torch sees no GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        torch.save(_peer_weights(torch, layers, width, vocabulary), f"{path}.pth")
        try:
            model = RWKV(model=str(path), strategy="cuda fp16")
        except Exception as error:
            print(f"rwkv: not measured: {error}")
            return
    name = f"rwkv {layers}x{width} fp16"
    nbytes = (13 * layers * width**2 + vocabulary * width) * 2

    class Device:
        sync = staticmethod(torch.cuda.synchronize)

    _, state = model.forward([5, 6, 7], None)
    taken = seconds(lambda: model.forward([9], state), Device, options.seconds)
    work = 2 * 13 * layers * width**2
    row(name, "decode, batch 1", 1, taken, nbytes, work)
    for length in options.prefills:
        tokens = [n % vocabulary for n in range(length)]
        taken = seconds(partial(model.forward, tokens, None), Device, options.seconds)
        row(name, f"prefill, {length}", length, taken, nbytes, work * length)


def _peer_weights(torch: Any, layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    def matrix(rows: int, columns: int) -> Any:
        made = torch.randn(rows, columns, device="cuda", dtype=torch.float16) * columns**-0.5
        return made.cpu()

    def vector(*shape: int) -> Any:
        return torch.rand(*shape).to(torch.float16)

    weights = {"emb.weight": matrix(vocabulary, width), "head.weight": matrix(vocabulary, width)}
    norms = ["ln_out", "blocks.0.ln0"]
    for i in range(layers):
        at = f"blocks.{i}."
        norms += [at + "ln1", at + "ln2"]
        weights |= {at + f"att.time_{n}": vector(width) for n in ("decay", "first")}
        weights |= {at + f"att.time_mix_{n}": vector(1, 1, width) for n in "kvr"}
        weights |= {at + f"ffn.time_mix_{n}": vector(1, 1, width) for n in "kr"}
        parts = ("key", "value", "receptance", "output")
        weights |= {at + f"att.{n}.weight": matrix(width, width) for n in parts}
        weights[at + "ffn.key.weight"] = matrix(4 * width, width)
        weights[at + "ffn.receptance.weight"] = matrix(width, width)
        weights[at + "ffn.value.weight"] = matrix(width, 4 * width)
    for name in norms:
        weights |= {f"{name}.weight": vector(width), f"{name}.bias": vector(width)}
    return weights


def main() -> None:
    """Checks, and measures unless a check failed."""
    numbers = lambda text: [int(n) for n in text.split(",") if n]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what `gpu.sh pack` made")
    parser.add_argument("--models", default="", help="comma-separated beginnings of names")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each round of a measurement")
    parser.add_argument("--prefills", type=numbers, default=list(PREFILLS), metavar="N,...")
    parser.add_argument("--batches", type=numbers, default=list(BATCHES), metavar="N,...")
    parser.add_argument("--lengths", type=numbers, default=[1, 7, 70, 200], metavar="N,...")
    parser.add_argument("--poison", type=int, default=4096, help="MiB of NaN before each check")
    parser.add_argument("--copy", type=int, default=2048, help="MiB that the bandwidth test copies")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="leave the package rwkv out")
    options = parser.parse_args()
    libraries = sorted((options.folder / "models").glob("*.so"))
    wanted = tuple(options.models.split(","))
    libraries = [path for path in libraries if path.stem.startswith(wanted)]
    if not libraries:
        sys.exit(f"{options.folder / 'models'} has no library of {options.models!r}")
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
    checked = [path for path in libraries if path.stem.startswith("check-")]
    results = [check(path, device, options.poison << 20, options.lengths) for path in checked]
    print(f"{sum(results)} of {len(results)} models are right")
    if not all(results):
        sys.exit(1)
    if options.check_only:
        return
    bandwidth = copy_bandwidth(device, options.seconds, options.copy << 20)
    peak = matrix_peak(options.seconds)
    print(f"copy bandwidth, read and written: {bandwidth / 1e9:.0f} GB/s")
    print(f"float16 matrix peak: {f'{peak / 1e12:.0f} TFLOP/s' if peak else 'no torch, no figure'}")
    print("| model | what | tokens | a call | weights and state | products |")
    print("|---|---|---|---|---|---|")
    for path in (path for path in libraries if path not in checked):
        measure(path, device, options, bandwidth, peak)
    if not options.no_peer:
        for layers, width in ((24, 2048), (32, 2560), (32, 4096)):
            measure_peer((layers, width, 65536), options)


if __name__ == "__main__":
    main()
