"""The package `rwkv` with random weights of one shape: its rows of `gpu_run.py`'s table.

    python gpu_peer.py NAME '{"model_version": 7, "hidden_size": 2048, ...}' [--strategy 'cpu fp32']

Its kernels are built by torch where CUDA is asked for, which needs nvcc and ninja.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of BlinkDL's file of an RWKV-4 or 7."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config["head_size"]
    for name in ("emb", "head"):
        yield f"{name}.weight", (v, d)
    for i in range(config["num_hidden_layers"]):
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        norms = [f"blocks.{i}.ln{n}" for n in ((0, 1, 2) if i == 0 else (1, 2))]
        for name in ("receptance", "key", "value", "output"):
            yield f"{att}{name}.weight", (d, d)
        yield f"{ffn}key.weight", (f, d)
        yield f"{ffn}value.weight", (d, f)
        if config["model_version"] == 4:
            yield f"{ffn}receptance.weight", (d, d)
            yield from ((f"{att}time_{n}", (d,)) for n in ("decay", "first"))
            yield from ((f"{att}time_mix_{n}", (1, 1, d)) for n in "kvr")
            yield from ((f"{ffn}time_mix_{n}", (1, 1, d)) for n in "kr")
        else:
            norms.append(f"{att}ln_x")
            yield from ((f"{att}x_{n}", (1, 1, d)) for n in "rwkvag")
            yield from ((f"{att}{n}", (1, 1, d)) for n in ("w0", "a0", "v0", "k_k", "k_a"))
            for n, field in zip("wavg", ("decay", "a", "v", "gate"), strict=True):
                rank = config[f"{field}_low_rank_dim"]
                yield from ((f"{att}{n}1", (d, rank)), (f"{att}{n}2", (rank, d)))
            yield f"{att}r_k", (d // head, head)
            yield f"{ffn}x_k", (1, 1, d)
        for norm in norms:
            yield from ((f"{norm}.{n}", (d,)) for n in ("weight", "bias"))
    yield from ((f"ln_out.{n}", (d,)) for n in ("weight", "bias"))


def weights(config: dict[str, Any], device: str, torch: Any) -> dict[str, Any]:
    """Random values that keep activations near 1."""

    def made(name: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 2 and not name.endswith("r_k"):
            inner = shape[0] if name[-1] in "12" else shape[1]
            return torch.randn(shape, device=device, dtype=torch.float16) * inner**-0.5
        return torch.rand(shape, device=device).to(torch.float16)

    return {name: made(name, shape) for name, shape in shapes(config)}


def main() -> None:
    """Prints a row as soon as it is known; says why where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("config", type=json.loads)
    parser.add_argument("--strategy", default="cuda fp16")
    parser.add_argument("--prefills", type=lambda t: [int(n) for n in t.split(",") if n])
    parser.add_argument("--seconds", type=float, default=0.15)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config, device = options.config, options.strategy.split()[0]
    seven = config["model_version"] == 7
    os.environ.update(RWKV_JIT_ON="1", RWKV_V7_ON="1" if seven else "0")
    os.environ["RWKV_CUDA_ON"] = "1" if device == "cuda" else "0"
    try:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            sys.exit(f"rwkv, {options.name}: not measured: torch sees no GPU")
        begin = time.monotonic()
        with torch.no_grad():
            made = weights(config, device, torch)
            # It would write and read a file of all of them.
            torch.load = lambda *_, **__: made
            from rwkv.model import RWKV

            # It talks while it loads, in the middle of the table.
            print_there, sys.stdout = sys.stdout, sys.stderr
            model = RWKV(model="random", strategy=options.strategy)
            sys.stdout = print_there
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(f"rwkv, {options.name}: not measured: {error}")
    print(f"rwkv, {options.name}: ready in {time.monotonic() - begin:.0f} s", flush=True)
    from gpu_run import row, seconds

    class Device:
        sync = staticmethod(torch.cuda.synchronize if device == "cuda" else lambda: None)

    matrices = {n: s for n, s in shapes(config) if len(s) == 2 and "emb" not in n}
    work = 2 * sum(s[0] * s[1] for n, s in matrices.items() if "blocks" in n)
    nbytes = 2 * sum(s[0] * s[1] for s in matrices.values())
    pace = (options.seconds, options.rounds)
    name, given = f"rwkv {options.name} {options.strategy}", config["vocab_size"]
    with torch.no_grad():
        _, state = model.forward([5, 6, 7], None)
        taken = seconds(lambda: model.forward([9], state), Device, *pace)
        row(name, "decode, batch 1", 1, taken, nbytes, work)
        for length in options.prefills:
            tokens = [n % given for n in range(length)]
            taken = seconds(partial(model.forward, tokens, None), Device, *pace)
            row(name, f"prefill, {length}", length, taken, nbytes, work * length)


if __name__ == "__main__":
    main()
