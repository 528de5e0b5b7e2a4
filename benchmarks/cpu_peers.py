"""Decoding and reading speed on a CPU beside other programs, measured in turns on one machine.

    python benchmarks/cpu_peers.py dist/MODEL-q4f16_1 --pth MODEL.pth \\
        --rwkv-cpp build/librwkv.so --ggml MODEL-Q4_0.bin --gguf MODEL-Q4_0.gguf --threads 2

Each program runs in a process of its own, one after another, for several rounds; the table has the
median of the rounds: tokens per second; the share of the machine's read bandwidth, measured in the
same rounds, that the weights of its steps take; seconds from the start of the process to the first
token; and the most memory that the process held, mapped files counted. `--pth` adds the package
`rwkv` (float32 and bfloat16); `--rwkv-cpp` and `--ggml`, which may be repeated, add rwkv.cpp by its
built library and models in its own format; `--gguf` adds llama.cpp by the package
`llama-cpp-python`, which knows no RWKV-4. `peer_files.py` writes an RWKV-7 as they want it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Tokens of one round: read first, then decoded one by one.
PROMPT, STEPS = 512, 24
# rwkv.cpp aborts on longer pieces of a prompt.
PIECE = 64
VOCABULARY = 60000
# When a child's process was started, in seconds since the epoch.
_STARTED = "CPU_PEERS_STARTED"
Speeds = dict[str, float]


def main() -> int:
    """Run all programs in turns, or one of them as a child; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", nargs="*", help="folders of built models")
    parser.add_argument("--pth", action="append", default=[], help="checkpoints for `rwkv`")
    parser.add_argument("--rwkv-cpp", metavar="LIBRARY", help="rwkv.cpp's built library")
    parser.add_argument("--ggml", action="append", default=[], help="models for rwkv.cpp")
    parser.add_argument("--gguf", action="append", default=[], help="models for llama.cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=PROMPT)
    parser.add_argument("--json", help="write the medians there too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, _, path = options.child.partition(":")
        programs = {
            "ours": _ours,
            "fp32": _rwkv,
            "bf16": _rwkv,
            "cpp": _rwkv_cpp,
            "llama": _llama_cpp,
        }
        measured = _limits(options) if kind == "limits" else programs[kind](kind, path, options)
        # Kilobytes.
        measured["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(measured))
        return 0
    order = ["limits:", *(f"ours:{path}" for path in options.artifact)]
    order += [f"{kind}:{path}" for path in options.pth for kind in ("fp32", "bf16")]
    if options.rwkv_cpp:
        order += [f"cpp:{path}" for path in options.ggml]
    order += [f"llama:{path}" for path in options.gguf]
    found: dict[str, list[Speeds]] = {program: [] for program in order}
    for _ in range(options.rounds):
        for program in order:
            found[program].append(_child(program, options))
    rows = {
        program: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for program, runs in found.items()
    }
    limits = rows["limits:"]
    print(
        f"{options.threads} threads, {options.rounds} rounds; the machine reads "
        f"{limits['read'] / 1e9:.1f} GB/s and does {limits['float32'] / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':44}{'decode':>8}{'share':>7}{'prefill':>9}{'first':>8}{'peak MB':>9}")
    for program, row in rows.items():
        kind, _, path = program.partition(":")
        if kind == "limits":
            continue
        share = f"{100 * row['bytes'] * row['decode'] / limits['read']:.0f}%"
        print(
            f"{kind + ' ' + Path(path).name:44}{row['decode']:>8.1f}{share:>7}"
            f"{row['prefill']:>9.1f}{row['first']:>8.2f}{row['peak'] / 1e6:>9.0f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def _child(program: str, options: argparse.Namespace) -> Speeds:
    command = [sys.executable, __file__, "--child", program]
    command += ["--threads", str(options.threads), "--prompt", str(options.prompt)]
    if options.rwkv_cpp:
        command += ["--rwkv-cpp", options.rwkv_cpp]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "RWKV_JIT_ON": "1"}
    environment[_STARTED] = str(time.time())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    speeds: Speeds = json.loads(done.stdout.splitlines()[-1])
    return speeds


def _ids(count: int) -> list[int]:
    return [1 + i * 7919 % VOCABULARY for i in range(count)]


def _timed(
    decode: Callable[[int], object], prefill: Callable[[list[int]], object], length: int
) -> Speeds:
    """Medians of single steps, the better of two prompts, and when the first token came."""
    decode(1)
    first = time.time() - float(os.environ.get(_STARTED, "nan"))
    steps = []
    for token in _ids(STEPS + 4):
        started = time.perf_counter()
        decode(token)
        steps.append(time.perf_counter() - started)
    prompts = []
    for _ in range(2):
        started = time.perf_counter()
        prefill(_ids(length))
        prompts.append(time.perf_counter() - started)
    return {
        "decode": 1 / statistics.median(steps[4:]),
        "prefill": length / min(prompts),
        "first": first,
    }


def _limits(options: argparse.Namespace) -> Speeds:
    from mlc_rwkv_world.compiler.limits import measure
    from mlc_rwkv_world.runtime.threads import use

    found = measure(use(options.threads))
    return {"read": found.read, "float32": found.float32}


def _ours(_kind: str, path: str, options: argparse.Namespace) -> Speeds:
    from mlc_rwkv_world.cli.start import start_light

    start_light()
    from mlc_rwkv_world.runtime import load

    engine = load(path, "cpu", threads=options.threads)
    state = engine.new_state()
    speeds = _timed(
        lambda token: engine.decode(token, state),
        lambda ids: engine.prefill(ids, engine.new_state()),
        options.prompt,
    )
    from mlc_rwkv_world.cli.bench import work

    return {**speeds, "bytes": work(engine)[0]}


def _rwkv(kind: str, path: str, options: argparse.Namespace) -> Speeds:
    import torch

    torch.set_num_threads(options.threads)
    seventh = "blocks.0.att.r_k" in torch.load(path, mmap=True, weights_only=True)
    # With it the package holds RWKV-7, and no other, and adds the name's end itself.
    os.environ["RWKV_V7_ON"] = "1" if seventh else "0"
    from rwkv.model import RWKV

    if seventh:
        model = RWKV(model=path.removesuffix(".pth"), strategy=f"cpu {kind}")
    else:
        model = RWKV(model=path, strategy=f"cpu {kind}", verbose=False)
    state = None

    def decode(token: int) -> None:
        nonlocal state
        _, state = model.forward([token], state)

    speeds = _timed(decode, lambda ids: model.forward(ids, None), options.prompt)
    weights: dict[str, Any] = model.z if seventh else model.w
    tensors = [w for n, w in weights.items() if n != "emb.weight" and isinstance(w, torch.Tensor)]
    return {**speeds, "bytes": sum(w.nbytes for w in tensors)}


def _rwkv_cpp(_kind: str, path: str, options: argparse.Namespace) -> Speeds:
    library = ctypes.CDLL(options.rwkv_cpp)
    floats = ctypes.POINTER(ctypes.c_float)
    library.rwkv_init_from_file.restype = ctypes.c_void_p
    library.rwkv_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32]
    for name in ("rwkv_get_state_len", "rwkv_get_logits_len"):
        getattr(library, name).restype = ctypes.c_size_t
        getattr(library, name).argtypes = [ctypes.c_void_p]
    one: list[Any] = [ctypes.c_void_p, ctypes.c_uint32, floats, floats, floats]
    library.rwkv_eval.argtypes = one
    ids_pointer = ctypes.POINTER(ctypes.c_uint32)
    library.rwkv_eval_sequence.argtypes = [one[0], ids_pointer, ctypes.c_size_t, *one[2:]]
    context = library.rwkv_init_from_file(path.encode(), options.threads, 0)
    if not context:
        raise SystemExit(f"rwkv.cpp cannot load {path}.")
    state = (ctypes.c_float * library.rwkv_get_state_len(context))()
    logits = (ctypes.c_float * library.rwkv_get_logits_len(context))()
    library.rwkv_init_state.argtypes = [ctypes.c_void_p, floats]
    library.rwkv_init_state(context, state)

    def prefill(ids: list[int]) -> None:
        for begin in range(0, len(ids), PIECE):
            piece = ids[begin : begin + PIECE]
            array = (ctypes.c_uint32 * len(piece))(*piece)
            library.rwkv_eval_sequence(context, array, len(piece), state, state, logits)

    speeds = _timed(
        lambda token: library.rwkv_eval(context, token, state, state, logits),
        prefill,
        options.prompt,
    )
    return {**speeds, "bytes": Path(path).stat().st_size - _rwkv_cpp_embedding(path)}


def _rwkv_cpp_embedding(path: str) -> int:
    """Bytes of the embedding, the first tensor of rwkv.cpp's files, which is never quantized."""
    with Path(path).open("rb") as file:
        # Magic, version, sizes and type; then of the tensor axes, the name's length and the type.
        _, _, vocabulary, width, _, _, _, length, kind, _, _ = struct.unpack("<11I", file.read(44))
        if file.read(length) != b"emb.weight":
            raise SystemExit(f"{path} does not begin with the embedding.")
    return int(vocabulary * width * (4 if kind == 0 else 2))


def _llama_cpp(_kind: str, path: str, options: argparse.Namespace) -> Speeds:
    from llama_cpp import Llama

    threads = options.threads
    model = Llama(path, n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False)

    def prefill(ids: list[int]) -> None:
        model.reset()
        model.eval(ids)

    speeds = _timed(lambda token: model.eval([token]), prefill, options.prompt)
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    read = sum(int(one.n_bytes) for one in tensors if one.name != "token_embd.weight")
    return {**speeds, "bytes": read}


if __name__ == "__main__":
    sys.exit(main())
