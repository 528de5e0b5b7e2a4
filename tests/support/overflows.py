"""Overflows of float16 planted in one block of a trained model, whose float32 answers stay.

Each function takes tensors under BlinkDL's names and gives changed ones. Factors are powers of two,
and what has to cancel exactly is 7 times one, so that four bits hold it exactly too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from support.checkpoints import Tensors

# Large enough for the trained model's magnitudes, small enough for float16's storage.
KEY, SQUARE, VALUE = 2.0**14, 2.0**6, 2.0**15
# A residual of 7 * 7 * 7 * 2^8 = 87808; float16 ends at 65504.
BUMP = 87808.0


def _changed(tensors: Tensors, layer: int, changes: dict[str, np.ndarray]) -> Tensors:
    return tensors | {f"blocks.{layer}.{name}": value for name, value in changes.items()}


def _copy(tensors: Tensors, layer: int, *names: str) -> list[np.ndarray]:
    return [tensors[f"blocks.{layer}.{name}"].copy() for name in names]


def key(tensors: Tensors, layer: int) -> Tensors:
    """att.key leaves the range in one channel, which no longer reaches the output."""
    channel = {0: 49, 2: 80}[layer]
    weight, output = _copy(tensors, layer, "att.key.weight", "att.output.weight")
    weight[channel] *= KEY
    output[:, channel] = 0
    return _changed(tensors, layer, {"att.key.weight": weight, "att.output.weight": output})


def square(tensors: Tensors, layer: int) -> Tensors:
    """The square in the channel mix leaves the range; ffn.value takes the factor back."""
    weight, value = _copy(tensors, layer, "ffn.key.weight", "ffn.value.weight")
    scaled = {"ffn.key.weight": weight * SQUARE, "ffn.value.weight": value / SQUARE**2}
    return _changed(tensors, layer, scaled)


def value(tensors: Tensors, layer: int) -> Tensors:
    """What att.output reads leaves the range; its weight takes the factor back."""
    weight, output = _copy(tensors, layer, "att.value.weight", "att.output.weight")
    scaled = {"att.value.weight": weight * VALUE, "att.output.weight": output / VALUE}
    return _changed(tensors, layer, scaled)


# The channel that is given up for a constant: of the normalized inputs, and of the residual.
_SPARE = 126


def _constant_value(tensors: Tensors, layer: int) -> dict[str, np.ndarray]:
    """Makes channel `c` of ln1 give 7, and channel `c` of the time mix 7 * 7168 = 50176."""
    c = _SPARE
    names = ["ln1.weight", "ln1.bias", "att.output.weight"]
    names += [f"att.time_mix_{part}" for part in "kvr"]
    products = [f"att.{part}.weight" for part in ("key", "value", "receptance")]
    found = dict(zip(names + products, _copy(tensors, layer, *names, *products), strict=True))
    found["ln1.weight"][c], found["ln1.bias"][c] = 0, 7
    for part in "kvr":
        found[f"att.time_mix_{part}"][..., c] = 1
    for name in products:
        found[name][:, c] = 0
        found[name][c] = 0
    found["att.value.weight"][c, c] = 7 * 2.0**10
    # sigmoid(98) is one, so that nothing but the constant remains.
    found["att.receptance.weight"][c, c] = 14
    found["att.output.weight"][:, c] = 0
    return found


def bump(tensors: Tensors, layer: int) -> Tensors:
    """att.output lifts one channel of the residual by 87808, and ffn.value takes it back.

    The normalization between sees almost nothing but that channel, so its weight and bias are
    changed to give the others what they had before.
    """
    c = _SPARE
    found = _constant_value(tensors, layer)
    output = found["att.output.weight"]
    output[c] = 0
    output[c, c] = 7 * 2.0**-2
    names = ["ln2.weight", "ln2.bias", "ffn.value.weight"]
    names += [f"ffn.time_mix_{part}" for part in "kr"]
    products = ["ffn.key.weight", "ffn.receptance.weight"]
    found |= dict(zip(names + products, _copy(tensors, layer, *names, *products), strict=True))
    weight, bias = found["ln2.weight"], found["ln2.bias"]
    width = len(weight)
    usual = {0: 1.05, 2: 1.6}[layer]  # standard deviation of the residual there
    lifted = np.eye(width)[c] * BUMP
    mean, spread = lifted.mean(), lifted.std()
    bias += weight * (mean / usual)
    weight *= spread / usual
    weight[c], bias[c] = 0, 1
    for part in "kr":
        found[f"ffn.time_mix_{part}"][..., c] = 1
    key, receptance, value = (
        found[f"ffn.{part}.weight"] for part in ("key", "receptance", "value")
    )
    hidden = int(np.abs(value).max(0).argmin())
    key[:, c] = receptance[:, c] = 0
    key[hidden] = receptance[c] = 0
    key[hidden, c] = 7 * 2.0**2
    receptance[c, c] = 7 * 2.0**3
    value[:, hidden] = 0
    value[c] = 0
    value[c, hidden] = -7 * 2.0**4
    return _changed(tensors, layer, found)


def leave(tensors: Tensors, layer: int) -> Tensors:
    """All channels of the residual are lifted alike and stay so: normalizations do not see it."""
    found = _constant_value(tensors, layer)
    found["att.output.weight"][:, _SPARE] = 7 * 2.0**-2
    return _changed(tensors, layer, found)


@dataclasses.dataclass(frozen=True)
class Planted:
    """How an overflow is planted, and the operation at which `inspect` has to find it."""

    plant: Callable[[Tensors, int], Tensors]
    operation: str


CASES = {
    "key": Planted(key, "attention.key"),
    "square": Planted(square, "feed_forward.key square"),
    "value": Planted(value, "attention.wkv multiply"),
    "bump": Planted(bump, "attention.output"),
    "leave": Planted(leave, "attention.output"),
}
