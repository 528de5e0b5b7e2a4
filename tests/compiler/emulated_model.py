"""Runs a small model on a GPU's stand-in or this CPU, and says how far off its answers are."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from running import taken
from tvm import IRModule, relax

from mlc_rwkv_world.compiler import library, metadata, pipeline
from mlc_rwkv_world.compiler.export import export, parameters
from mlc_rwkv_world.compiler.target import BuildTarget, resolve
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Stored, format_named
from mlc_rwkv_world.storage.groups import dequantize
from mlc_rwkv_world.storage.stored import matrix_of
from mlc_rwkv_world.versions import references
from mlc_rwkv_world.versions.precision import FLOAT64
from mlc_rwkv_world.versions.table import settled, version_of
from mlc_rwkv_world.versions.weights import Dense

Array = np.ndarray
Answers = dict[str, list[Array]]

# Prompts of three sequences, of one token, and of more than a tile of the large product has.
RAGGED = [0, 5, 6, 23]
LONG = 140
STEPS = 3
# What is asked, where a width takes long: a prompt of more rows than a tile of Metal's product has,
# and one step.
BRIEF = (40, 1)
# Of the pool, enough for every state that is written.
SLOTS = 32


# Relative root mean square, by the type that products compute in.
BOUNDS = {"float32": 1e-5, "float16": 4e-3}
RANKS: dict[int, dict[str, int]] = {
    4: {},
    5: {},
    6: {"mix_low_rank_dim": 32, "decay_low_rank_dim": 64},
    7: {
        "decay_low_rank_dim": 32,
        "a_low_rank_dim": 64,
        "v_low_rank_dim": 32,
        "gate_low_rank_dim": 96,
    },
}


@dataclasses.dataclass(frozen=True)
class Model:
    """What to build: the sizes, the format and what it computes in."""

    config: ModelConfig
    quantization: str
    compute_dtype: str


def unquantized(
    version: int, width: int, dtype: str, *, vocab_size: int = 512, layers: int = 2
) -> Model:
    """A model whose weights are stored as what it computes in."""
    config = ModelConfig(
        model_version=version,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        rescale_every=0,
        prefill_chunk_size=160,
        fp32_layers=(),
        **RANKS[version],  # type: ignore[arg-type]
    )
    return Model(settled(config), {"float32": "q0f32", "float16": "q0f16"}[dtype], dtype)


def random_parameters(model: Model, seed: int = 0) -> list[Array]:
    """Values for the parameters of a model, in the library's order, that keep activations O(1)."""
    rng = np.random.default_rng(seed)
    values = []
    for spec in parameters(model.config, format_named(model.quantization)):
        if spec.dtype == "uint32":
            assert spec.stored is not None
            value = _words(rng, spec.shape, spec.stored)
        elif spec.name.endswith("q_scale"):
            assert spec.stored is not None
            # Values up to 0.014 to 0.14, whatever their bits.
            value = rng.uniform(0.014, 0.14, spec.shape) / spec.stored.largest
        elif len(spec.shape) == 2:
            value = rng.standard_normal(spec.shape) * spec.shape[1] ** -0.5
        elif spec.name.endswith("time_decay"):
            value = rng.uniform(-6, 1, spec.shape)
        elif "ln" in spec.name and spec.name.endswith("weight"):
            value = rng.uniform(0.8, 1.2, spec.shape)
        else:
            value = rng.uniform(0, 1, spec.shape)
        values.append(value.astype(spec.dtype))
    return values


def _words(rng: np.random.Generator, shape: tuple[int, ...], stored: Stored) -> Array:
    """Random integers that a quantized weight can have, side by side in words of 32 bits."""
    shifts = np.arange(0, 32, stored.bits, dtype=np.uint32)
    low, high = stored.offset - stored.largest, stored.offset + stored.largest
    values = rng.integers(low, high + 1, (*shape, len(shifts)), np.uint32)
    words: Array = np.bitwise_or.reduce(values << shifts, axis=-1)
    return words


def run(
    model: Model, target_text: str, weights: list[Array], brief: bool = False
) -> tuple[Answers, dict[str, Any]]:
    """Logits and states of every function of ours; and what was launched on the way."""
    fmt, target = format_named(model.quantization), resolve(target_text)
    specs = parameters(model.config, fmt)
    described = metadata.describe(model.config, fmt, specs, target, model.compute_dtype)
    mod = export(model.config, fmt, model.compute_dtype)
    mod = pipeline.run(mod, target.target, model.config, described, None)
    device = tvm.device("cpu" if target.kind == "llvm" else target.kind, 0)
    with tempfile.TemporaryDirectory() as folder:
        machine = relax.VirtualMachine(built(mod, target, Path(folder)), device)
    tensors = [tvm.runtime.tensor(value, device) for value in weights]
    stored = {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True)}
    held = tvm_ffi.convert(taken(machine, stored))
    counts: dict[str, Any] = {}

    pool = tvm.runtime.tensor(_fresh_pool(model), device)

    def call(name: str, ids: list[int], moves: list[tuple[int, int]], *rest: Array) -> list[Array]:
        """Logits, and the states that were written."""
        arguments = [np.array(ids, np.int32), *rest, np.array(moves, np.int32)]
        given = [tvm.runtime.tensor(a, device) for a in arguments]
        before = _launches(target.kind)
        logits, _ = machine[name](*given, pool, held)
        counts.setdefault(name, []).append(
            [b - a for a, b in zip(before, _launches(target.kind), strict=True)]
        )
        return [logits.numpy(), pool.numpy()[[write for _, write in moves]]]

    answers = _asked(call, model.config.vocab_size, brief)
    answers["the fresh state"] = [pool.numpy()[:1]]
    return answers, counts


def exact(model: Model, weights: list[Array], brief: bool = False) -> Answers:
    """What `run` should give, by the reference in float64.

    Its exponents of a state that has read nothing are those of float32.
    """
    pool = _fresh_pool(model).astype(np.float64)

    def call(name: str, ids: list[int], moves: list[tuple[int, int]], *rest: Array) -> list[Array]:
        offsets = rest[0] if rest else np.arange(len(ids) + 1)
        reads, writes = ([pair[n] for pair in moves] for n in (0, 1))
        logits, pool[writes] = _reference(model, weights, ids, offsets, pool[reads])
        return [logits, pool[writes]]

    answers = _asked(call, model.config.vocab_size, brief)
    answers["the fresh state"] = [pool[:1]]
    return answers


def exact_logits(model: Model, weights: list[Array], texts: list[list[int]]) -> Array:
    """Logits [B, V] after each text, from fresh states; see `exact`."""
    fresh = _fresh_pool(model).astype(np.float64)[[0] * len(texts)]
    offsets = np.cumsum([0, *map(len, texts)])
    ids = [token for text in texts for token in text]
    return _reference(model, weights, ids, offsets, fresh)[0]


def _reference(
    model: Model, weights: list[Array], ids: list[int], offsets: Array, state: Array
) -> tuple[Array, Array]:
    config, fmt = model.config, format_named(model.quantization)
    named = {}
    given = zip(parameters(config, fmt), weights, strict=True)
    for name, found in groupby(given, lambda one: matrix_of(one[0].name)):
        (spec, first), *others = found
        tensors = [first, *(tensor for _, tensor in others)]
        named[name] = dequantize(tensors, spec.stored) if others and spec.stored else first
    reference = version_of(config.model_version).reference
    return references.run(reference, config, Dense(named), np.array(ids), offsets, state, FLOAT64)


def errors(found: Answers, wanted: Answers) -> dict[tuple[str, str], float]:
    """Relative root mean square of logits and states, by what was asked.

    Raises AssertionError where a value is not finite, or the fresh state is another.
    """
    assert found.keys() == wanted.keys()
    np.testing.assert_array_equal(found["the fresh state"], wanted["the fresh state"])
    answers = {}
    for name in found.keys() - {"the fresh state"}:
        for what, got, right in zip(("logits", "state"), found[name], wanted[name], strict=True):
            assert np.isfinite(got).all(), name
            # The exponent of a state that has read nothing would drown all else.
            known = np.abs(right) < 1e20
            error = np.square(got - right)[known].mean() / np.square(right)[known].mean()
            answers[name, what] = float(error**0.5)
    return answers


def hold(found: Answers, wanted: Answers, bound: float) -> None:
    """Raises AssertionError where an error is above `bound`, or the likeliest token is another that
    is not as likely to within the error.
    """
    off = errors(found, wanted)
    assert {what: error for what, error in off.items() if error > bound} == {}
    for name in found.keys() - {"the fresh state"}:
        right = wanted[name][0]
        best = np.take_along_axis(right, found[name][0].argmax(1)[:, None], 1)[:, 0]
        margin = 8 * bound * np.square(right).mean() ** 0.5
        assert (right.max(1) - best < margin).all(), name


def _asked(call: Callable[..., list[Array]], vocabulary: int, brief: bool) -> Answers:
    """The answers of `call(name, ids, slots of each sequence, offsets of a prefill)`, by name."""
    slots = iter(range(1, SLOTS))
    long, steps = BRIEF if brief else (LONG, STEPS)
    tokens = [(7 * i + 3) % vocabulary for i in range(long)]
    answers: Answers = {}
    for name, offsets in (("ragged", RAGGED), ("long", [0, long])):
        moves = [(0, next(slots)) for _ in offsets[1:]]
        ids = tokens[: offsets[-1]]
        answers[name] = call("rwkv_world_prefill", ids, moves, np.array(offsets, np.int32))
        if name == "ragged":
            for step in range(steps):
                batch = [(step + 11 * i) % vocabulary for i in range(len(offsets) - 1)]
                moves = [(held_in, next(slots)) for _, held_in in moves]
                answers[f"batch {step}"] = call("rwkv_world_batch_decode", batch, moves)
    # Another number of sequences, and then the first again.
    for turn, count in enumerate(() if brief else (2, 3)):
        moves = [(0, next(slots)) for _ in range(count)]
        found = call("rwkv_world_batch_decode", list(range(9, 9 + count)), moves)
        answers[f"batch of {count}, {turn}"] = found
    # Each step has slots of its own, and two sequences take turns.
    sequences = [0] if brief else [0, 0]
    for step in range(steps):
        for number in range(len(sequences)):
            moves = [(sequences[number], next(slots))]
            found = call("rwkv_world_decode", [5 + number + step], moves)
            answers[f"decode {step} {number}"] = found
            sequences[number] = moves[0][1]
    return answers


def built(mod: IRModule, target: BuildTarget, folder: Path) -> Any:
    """A lowered module as the virtual machine takes it."""
    if target.kind in ("metal", "webgpu"):
        # Its kernels are source until they are loaded.
        (path,) = library.write(mod, target, folder / "model.so")
        return tvm.runtime.load_module(str(path))
    nothing = tvm.transform.Sequential([])
    return relax.build(mod, target=target.target, relax_pipeline=nothing)


def _fresh_pool(model: Model) -> Array:
    """Slot 0 is a state that has read nothing; nobody may read the others before writing them."""
    fresh = version_of(model.config.model_version).initial_rows(model.config)
    shape = (SLOTS, model.config.num_hidden_layers, len(fresh), model.config.hidden_size)
    pool = np.full(shape, np.nan, np.float32)
    pool[0] = np.array(fresh)[:, None]
    return pool


def _launches(kind: str) -> tuple[int, int, int]:
    if kind != "cuda":
        return (0, 0, 0)
    from support import cuda_emulation

    return cuda_emulation.launches()
