"""RWKV-7's own kernels on CUDA: a block is eight launches for a step of one sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels.cuda import head_matrices
from mlc_rwkv_world.kernels.cuda.head_end import head_end
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type, type_of
from mlc_rwkv_world.kernels.rules import pair, products
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.model.state import PartState
from mlc_rwkv_world.versions.rwkv7.cuda import gates
from mlc_rwkv_world.versions.rwkv7.cuda.step import step
from mlc_rwkv_world.versions.rwkv7.parts import MIXES

_ACTS = {"w1": "tanh", "a1": "", "g1": "sigmoid", "v1": ""}


def wkv(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    """Products, gates, recurrence and what follows it."""
    size = part.attrs["head_size"]
    if POOL not in part or not head_matrices.suits(Signature([], [], emit.target), size):
        return None
    blends = dict(zip(MIXES, part.tensors("blends"), strict=True))
    large = dict(zip(("receptance", "key", "value"), (blends[n] for n in "rkv"), strict=True))
    letters = gates.LETTERS if "value_first" in part else gates.OF_FIRST_BLOCK
    first = {f"{n}1": blends[n] for n in letters}
    r, k, v, *hidden = products(part, emit, large | first, {role: _ACTS[role] for role in first})
    w, written, *value, removed, replaced, gate = _gates(part, emit, [k, v], hidden, letters)
    # Block 0's value is what the others take some of.
    value_first, (value,) = ([], value) if value else ([v], [v])
    token, after = [r, w, written, value, removed, replaced], [*part.tensors("ln_x"), gate]
    if OFFSETS not in part:
        state = part.tensor(POOL)
        (row,) = part.attrs["rows"]
        place = [state, part.tensor(SLOTS), part.attrs["layer"], row]
        gated, state = emit.call(
            step,
            [*token, part.tensor("r_k"), *after, *place],
            [tensor_type(part.outs[0])],
            state=state,
            size=size,
            eps=part.attrs["head_eps"],
        )
        return [gated, *value_first, state]
    pool = PartState(part)
    roles = dict(zip(("r", "w", "k", "v", "kk", "b"), token, strict=True))
    inner = part.smaller("rwkv7.recurrence", {**roles, OFFSETS: OFFSETS}, [(r.shape, "float32")])
    (y,) = pool.emit(inner, [0])
    (gated,) = emit.call(
        head_end,
        [y, r, written, value, part.tensor("r_k"), *after],
        [tensor_type(part.outs[0])],
        size=size,
        eps=part.attrs["head_eps"],
        bonus=True,
        gate=True,
        silu=False,
    )
    return [gated, *value_first, *pool.results()]


def _gates(
    part: Part, emit: Emitter, keys: list[Tensor], hidden: list[Tensor], letters: str
) -> list[Tensor]:
    """What the recurrence takes beside r, and the gate, from k and v and the first factors'."""
    shared, row = "value_first" in part, type_of(keys[0])
    vectors = [f"{n}0" for n in "wav" if n in letters] + ["k_k", "k_a"]
    rest = [part.tensor(role) for role in vectors]
    given, outs = [*keys, *part.tensors("value_first")], [row] * (6 if shared else 5)
    size = part.attrs["head_size"]
    second = [f"{n}2" for n in letters]
    stored = [part.weights[role] for role in second]
    ranks = [type_of(x).static(1) for x in hidden]
    kinds = Signature([], [], emit.target, stored)
    if row.shape[0] == 1 and gates.suits(kinds, size, ranks):
        weights = [tensor for role in second for tensor in pair(part.tensors(role))]
        args = [*given, *hidden, *weights, *rest]
        build = gates.gates_of_hidden
        return emit.call(build, args, outs, stored=stored, size=size, shared=shared)
    ups = products(part, emit, dict(zip(second, hidden, strict=True)))
    return emit.call(gates.gates, [*given, *ups, *rest], outs, size=size, shared=shared)


RULES: Mapping[str, Rule] = {"rwkv7.wkv": wkv}
