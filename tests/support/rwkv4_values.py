"""RWKV-4 in float64, written from its formulas, with every intermediate value kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Values = dict[str, np.ndarray]
EPSILON = 1e-5


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPSILON) * weight + bias


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _wkv(k: np.ndarray, v: np.ndarray, decay: np.ndarray, first: np.ndarray) -> np.ndarray:
    a, b, p = np.zeros(k.shape[1]), np.zeros(k.shape[1]), np.full(k.shape[1], -1e30)
    y = np.empty_like(k)
    for t in range(len(k)):
        q = np.maximum(p, first + k[t])
        old, new = np.exp(p - q), np.exp(first + k[t] - q)
        y[t] = (old * a + new * v[t]) / (old * b + new)
        q = np.maximum(p + decay, k[t])
        old, new = np.exp(p + decay - q), np.exp(k[t] - q)
        a, b, p = old * a + new * v[t], old * b + new, q
    return y


def run(tensors: Mapping[str, np.ndarray], ids: Sequence[int]) -> tuple[list[Values], np.ndarray]:
    """The values of each block [T, ..] over one sequence from a fresh state, and logits [T, V].

    `tensors` are under BlinkDL's names; values are named by what computes them: `ln1`, `att.key`,
    `att.mix` (the input of att.output), `att` (residual after the time mix), `out`, ...
    """
    w = {name: np.asarray(value, np.float64).squeeze() for name, value in tensors.items()}
    x = layer_norm(w["emb.weight"][list(ids)], w["blocks.0.ln0.weight"], w["blocks.0.ln0.bias"])
    blocks = []
    layers = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    for layer in range(layers):
        blocks.append(_block(w, f"blocks.{layer}.", x))
        x = blocks[-1]["out"]
    return blocks, layer_norm(x, w["ln_out.weight"], w["ln_out.bias"]) @ w["head.weight"].T


def _block(w: Mapping[str, np.ndarray], b: str, x: np.ndarray) -> Values:
    def mixed(y: np.ndarray, name: str) -> np.ndarray:
        ratio = w[b + name]
        previous = np.concatenate([np.zeros((1, y.shape[1])), y[:-1]])
        return np.asarray(y * ratio + previous * (1 - ratio))

    def product(y: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(y @ w[f"{b}{name}.weight"].T)

    found = {"in": x}
    y = found["ln1"] = layer_norm(x, w[b + "ln1.weight"], w[b + "ln1.bias"])
    for part, name in (("k", "key"), ("v", "value"), ("r", "receptance")):
        found[f"att.{name}"] = product(mixed(y, f"att.time_mix_{part}"), f"att.{name}")
    decay, first = -np.exp(w[b + "att.time_decay"]), w[b + "att.time_first"]
    found["att.wkv"] = _wkv(found["att.key"], found["att.value"], decay, first)
    found["att.mix"] = _sigmoid(found["att.receptance"]) * found["att.wkv"]
    found["att.output"] = product(found["att.mix"], "att.output")
    x = found["att"] = x + found["att.output"]
    y = found["ln2"] = layer_norm(x, w[b + "ln2.weight"], w[b + "ln2.bias"])
    found["ffn.key"] = product(mixed(y, "ffn.time_mix_k"), "ffn.key")
    found["ffn.receptance"] = product(mixed(y, "ffn.time_mix_r"), "ffn.receptance")
    found["ffn.square"] = np.square(np.maximum(found["ffn.key"], 0))
    found["ffn.value"] = product(found["ffn.square"], "ffn.value")
    found["out"] = x + _sigmoid(found["ffn.receptance"]) * found["ffn.value"]
    return found
