"""A GPU made of fibers: TVM's own CUDA runtime over a stand-in for NVIDIA's libraries.

TVM generates its CUDA source as ever; the source is compiled for this CPU, each thread of a block
runs as a fiber, and TVM's runtime launches it, captures graphs and replays them as if it had a
GPU. So a kernel's indices, barriers and shuffles are tested, and nothing of its speed.

`run` does so in a process of its own, since a process that has loaded the stand-in believes in it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# Compiling takes longer than running.
_FLAGS = ["-std=c++17", "-O0", "-march=native", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE"]
# Their bodies are instructions of a GPU; include/intrinsics.h has others.
_INTRINSIC = r"__device__ __forceinline__ void rwkv_world_\w+\("
_KERNEL = re.compile(
    r'extern "C" __global__ void __launch_bounds__\((\d+)(?:, *\d+)?\) (\w+)\(([^)]*)\) \{'
)
_ALIGNED = r"(?:(?:alignas|__align__)\(\d+\) )?"
_SHARED = re.compile(rf"{_ALIGNED}__shared__ {_ALIGNED}(\w+) (\w+)\[(\d+)\];")
_DYNAMIC = re.compile(rf"extern __shared__ {_ALIGNED}(\w+) (\w+)\[\];")
_SIZES = {
    "bool": 1,
    "half": 2,
    "float": 4,
    "uint": 4,
    "int": 4,
    "uchar": 1,
    "int64_t": 8,
    "ushort": 2,
}


def run(function: str, *args: Any, backwards: bool = False, timeout: float = 600) -> Any:
    """The result of `module:function` of the tests with `args`, in a process with the stand-in.

    With `backwards`, threads of a block take turns from the last to the first.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment.pop("RWKV_EMULATION_BACKWARDS", None)
    if backwards:
        environment["RWKV_EMULATION_BACKWARDS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        call, answer = Path(folder) / "call", Path(folder) / "answer"
        call.write_bytes(pickle.dumps((function, args)))
        command = [sys.executable, "-m", __name__, str(call), str(answer)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode or not answer.exists():
            raise AssertionError(
                f"{function} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return pickle.loads(answer.read_bytes())


def make_libraries(folder: Path) -> list[Path]:
    """The stand-ins for NVIDIA's libraries, under their names, in `folder`."""
    versions = folder / "versions"
    versions.write_text("libcudart.so.13 { global: cuda*; };")
    runtime, driver = folder / "libcudart.so.13", folder / "libcuda.so.1"
    flags = ["-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={versions}"]
    _compile((_HERE / "runtime.cc").read_text(), runtime, *flags)
    # It holds the driver's functions too.
    _compile("", driver, "-Wl,-soname,libcuda.so.1")
    return [runtime, driver]


def install(folder: Path) -> None:
    """Loads the stand-in into this process, with what it compiles in `folder`."""
    import tvm
    import tvm_ffi

    for library in make_libraries(folder):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"))
    count = 0

    def compile_cuda(code: str, *_: Any) -> bytes:
        nonlocal count
        count += 1
        library = folder / f"kernels{count}.so"
        _compile(for_fibers(code), library)
        return str(library).encode()

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_cuda, override=True)


def launches() -> tuple[int, int, int]:
    """Launches outside of graphs, launches that were captured, and replays of graphs so far."""
    counts = (ctypes.c_long * 3)()
    ctypes.CDLL("libcudart.so.13").emulation_counts(counts)
    return counts[0], counts[1], counts[2]


def for_fibers(code: str) -> str:
    """TVM's CUDA source as C++: shared memory is the block's, and kernels take an array."""
    pieces, end = [], 0
    for match in re.finditer(_INTRINSIC, code):
        pieces.append(code[end : match.start()])
        end = _closing(code, code.index("{", match.start()))
    code = "".join(pieces) + code[end:]
    tail = []
    # Definitions, not declarations, have a brace.
    kernels = list(_KERNEL.finditer(code))
    for match in kernels:
        bound, name, parameters = match.groups()
        types = [re.sub(r" \w+$", "", p.strip()) for p in parameters.split(",") if p.strip()]
        args = ", ".join(f"*({ty}*)p[{i}]" for i, ty in enumerate(types))
        sizes = ", ".join([*(f"sizeof({ty})" for ty in types), "0"])
        tail.append(
            f'extern "C" void emulated_{name}(void** p) {{ {name}({args}); }}\n'
            f'extern "C" const size_t sizes_{name}[] = {{{sizes}}};\n'
            f'extern "C" const unsigned bound_{name} = {bound};\n'
        )
    bodies = []
    starts = [match.start() for match in kernels] + [len(code)]
    bodies.append(code[: starts[0]])
    for begin, stop in itertools.pairwise(starts):
        bodies.append(_shared_memory(code[begin:stop]))
    return "#define __restrict__\n" + "".join(bodies) + "".join(tail)


def _shared_memory(kernel: str) -> str:
    offset = 0

    def place(match: re.Match[str]) -> str:
        nonlocal offset
        dtype, name, count = match.groups()
        size = _SIZES[dtype] * int(count)
        at, offset = offset, (offset + size + 127) // 128 * 128
        return f"{dtype}* {name} = ({dtype}*)emulation::shared_array({at}, {size});"

    kernel = _SHARED.sub(place, kernel)
    return _DYNAMIC.sub(r"\1* \2 = (\1*)emulation::current->block->dynamic;", kernel)


def _closing(code: str, brace: int) -> int:
    depth, at = 0, brace
    while True:
        depth += {"{": 1, "}": -1}.get(code[at], 0)
        at += 1
        if depth == 0:
            return at


def _compile(source: str, library: Path, *flags: str) -> None:
    command = ["g++", *_FLAGS, f"-I{_HERE / 'include'}", "-x", "c++", "-", "-o", str(library)]
    command.insert(-3, f"-I{_HERE}")
    done = subprocess.run([*command, *flags], input=source, capture_output=True, text=True)
    if done.returncode:
        library.with_suffix(".cc").write_text(source)
        raise RuntimeError(f"g++ failed on {library.with_suffix('.cc')}:\n{done.stderr[:4000]}")


def _main(call: str, answer: str) -> None:
    function, args = pickle.loads(Path(call).read_bytes())
    module, _, name = function.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        result = getattr(importlib.import_module(module), name)(*args)
        Path(answer).write_bytes(pickle.dumps(result))
        sys.stdout.flush()
        # Destructors of loaded libraries would run in any order.
        os._exit(0)


def missing() -> str | None:
    """Why this machine cannot emulate; None where it can."""
    if sys.platform != "linux":
        return "needs Linux's loader"
    if shutil.which("g++") is None:
        return "needs g++"
    lib = importlib.util.find_spec("tvm")
    runtime = Path(str(lib and lib.origin)).parent / "lib" / "libtvm_runtime_cuda.so"
    return None if runtime.is_file() else "this TVM has no CUDA runtime"
