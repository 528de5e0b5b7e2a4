"""A carried library on the device with random weights, and the same model as a NumPy reference.

Beside a library `NAME.so` lies `NAME.json`, the configuration that it was built with.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize
from mlc_rwkv_world.versions.precision import FLOAT32
from mlc_rwkv_world.versions.references import run

Array = np.ndarray
_GROUP = 32


class Model:
    """A library on the device. Blocks of the same parity share the values of their weights."""

    def __init__(self, path: Path, device: Any, poison: int = 0) -> None:
        import tvm
        import tvm_ffi
        from tvm.runtime import vm

        self.device, self.tensor, self.empty = device, tvm.runtime.tensor, tvm.runtime.empty
        self.config = ModelConfig.from_dict(json.loads(path.with_suffix(".json").read_text()))
        module = tvm.runtime.load_module(str(path))
        _poison(device, poison)
        self.machine = vm.VirtualMachine(module, device)
        described = json.loads(self.machine["_metadata"]())
        self.specs: list[dict[str, Any]] = described["params"]
        self.fresh_rows = np.array(described["rwkv_world"]["initial_rows"], np.float32)
        values = RandomWeights(self.specs, self.config)
        held: dict[Any, Any] = {}
        self.weights = tvm_ffi.convert([self._placed(values, held, spec) for spec in self.specs])
        self.pool: Any = None

    def _placed(self, values: RandomWeights, held: dict[Any, Any], spec: dict[str, Any]) -> Any:
        """A tensor of its own on the device: what was there before is copied from there."""
        key = values.key(spec)
        if key not in held:
            held[key] = self.tensor(values.of(spec), self.device)
            return held[key]
        return self.empty(tuple(spec["shape"]), spec["dtype"], self.device).copyfrom(held[key])

    @property
    def nbytes(self) -> int:
        """Bytes of weights that decoding one token reads: all but the embedding's other rows."""
        return sum(
            int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize
            for spec in self.specs
            if "embeddings" not in spec["name"]
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence's state."""
        layers, width = self.config.num_hidden_layers, self.config.hidden_size
        return len(self.fresh_rows) * layers * width * 4

    @property
    def products(self) -> int:
        """Multiplications of one token in the blocks' products."""
        return products(self.specs)

    def states(self, count: int) -> States:
        """So many states that have read nothing; those that were given before are gone."""
        # A captured graph holds the pool's address.
        if self.pool is None:
            most, layers = self.config.max_batch_size, self.config.num_hidden_layers
            one = np.repeat(self.fresh_rows[:, None], self.config.hidden_size, axis=1)
            fresh = np.broadcast_to(one, (2 * most, layers, *one.shape))
            self.fresh = self.tensor(np.ascontiguousarray(fresh), self.device)
            self.pool = self.empty(fresh.shape, "float32", self.device)
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
        self.slots = self._moving(self.model.config.max_batch_size if self.at == 0 else 0)

    def numpy(self) -> Array:
        """The states [B, L, R, D] that the last call has written."""
        content: Array = self.model.pool.numpy()[self.at : self.at + self.count]
        return content

    def _moving(self, to: int) -> Any:
        numbers = np.arange(self.count)
        slots = np.stack([self.at + numbers, to + numbers], axis=1)
        self.at = to
        return self.model.ids(slots)


def products(specs: list[dict[str, Any]]) -> int:
    """Values of all matrices in the blocks of a model with these parameters."""
    total = 0
    for name, shape in ((spec["name"], spec["shape"]) for spec in specs):
        if "blocks." in name and name.endswith("q_scale"):
            total += shape[0] * shape[1] * _GROUP
        elif "blocks." in name and name.endswith(".weight") and len(shape) == 2:
            total += shape[0] * shape[1]
    return int(total)


class RandomWeights:
    """Weights for a parameter's name, shape and type that keep activations near 1.

    Matrices repeat some million values, which takes seconds and not minutes for 7B.
    """

    def __init__(self, specs: list[dict[str, Any]], config: ModelConfig, seed: int = 0) -> None:
        self.shapes = {spec["name"]: spec["shape"] for spec in specs}
        self.rng = np.random.default_rng(seed)
        self.rescale = config.rescale_every
        self.pool = {
            "uint32": self.rng.integers(0, 1 << 32, 1 << 22, np.uint32),
            "float": self.rng.standard_normal(1 << 22, np.float32),
        }

    def key(self, spec: dict[str, Any]) -> tuple[Any, ...]:
        """What tensors of the same values have in common."""
        before, _, within = spec["name"].partition("blocks.")
        block, _, name = within.partition(".")
        return before, block and int(block) % 2, name, tuple(spec["shape"]), self._halving(spec)

    def of(self, spec: dict[str, Any]) -> Array:
        name, shape, dtype = spec["name"], tuple(spec["shape"]), spec["dtype"]
        if dtype == "uint32":
            return self._repeat("uint32", shape)
        if name.endswith("q_scale"):
            bits = bits_of(self.shapes, name)
            variance = (4**bits - 1) / 12
            scale = self.rng.uniform(0.5, 1.5, shape) * (variance * shape[1] * _GROUP) ** -0.5
            scaled: Array = scale * self._halving(spec)
            return scaled.astype(dtype)
        if name.endswith(".weight") and len(shape) == 2:
            factor = np.float32(shape[1] ** -0.5 * self._halving(spec))
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

    def _halving(self, spec: dict[str, Any]) -> float:
        """What rescaling divides a block's output weights by."""
        name: str = spec["name"]
        if not self.rescale or not any(p in name for p in ("attention.output", "forward.value")):
            return 1.0
        return 0.5 ** (int(name.split("blocks.")[1].split(".")[0]) // self.rescale)


def bits_of(shapes: dict[str, Any], scale: str) -> int:
    """How wide the integers are that the scales of this name belong to."""
    words = shapes[scale.removesuffix("q_scale") + "q_weight"]
    return int(words[1] // shapes[scale][1])


def _poison(device: Any, nbytes: int) -> None:
    """Leaves NaN in device memory that is given back, and then given to the model."""
    import tvm

    piece = np.full(1 << 20, np.nan, np.float32)
    held = [tvm.runtime.tensor(piece, device) for _ in range(nbytes // piece.nbytes)]
    device.sync()
    del held


class _Weights:
    """The model's weights as its reference reads them: `versions.weights.Weights`."""

    def __init__(self, model: Model) -> None:
        pairs = zip(model.specs, model.weights, strict=True)
        self.arrays: dict[str, Array] = {spec["name"]: value.numpy() for spec, value in pairs}
        self.shapes = {name: value.shape for name, value in self.arrays.items()}

    def vector(self, name: str) -> Array:
        return self.arrays[name]

    def rows(self, name: str, ids: Array) -> Array:
        chosen: Array = self._matrix(name)[ids]
        return chosen

    def slices(self, name: str) -> Iterator[Array]:
        yield self._matrix(name)

    def _matrix(self, name: str) -> Array:
        if name not in self.arrays:
            layer = name.removesuffix("weight")
            words, scales = (self.arrays.pop(layer + one) for one in ("q_weight", "q_scale"))
            bits = bits_of(self.shapes, layer + "q_scale")
            stored = Stored.symmetric(bits, str(scales.dtype), _GROUP)
            self.arrays[name] = dequantize([words, scales], stored)
        elif self.arrays[name].dtype != np.float32:
            self.arrays[name] = self.arrays[name].astype(np.float32)
        return self.arrays[name]


class Reference:
    """The same model on the CPU: its reference in float32, with weights as they are stored."""

    def __init__(self, model: Model) -> None:
        self.weights, self.config = _Weights(model), model.config
        # The table of versions knows kernels, and so needs TVM's compiler.
        name = f"mlc_rwkv_world.versions.rwkv{self.config.model_version}.reference"
        self.reference = importlib.import_module(name)

    def run(self, ids: Array, ends: Array, state: Array) -> Array:
        """ids [T] of B sequences, of which `ends` [B + 1] says where each ends.

        Updates `state` [B, L, R, D]; gives the logits [B, V] after each one's last token.
        """
        given = (self.reference, self.config, self.weights, ids, ends, state, FLOAT32)
        logits, state[:] = run(*given)
        return logits
