"""A GPU made of fibers: TVM's own CUDA runtime over a stand-in for NVIDIA's libraries.

TVM generates its CUDA source as ever; the source is compiled for this CPU, each thread of a block
runs as a fiber, and TVM's runtime launches it, captures graphs and replays them as if it had a
GPU. So a kernel's indices, barriers and shuffles are tested, and nothing of its speed. Threads of
some blocks take turns in a random order that a seed chooses, and what each touches is watched: see
memory.cc for what ends the process.

`run` does so in a process of its own, since a process that has loaded the stand-in believes in it.
"""

from __future__ import annotations

import ctypes
import dataclasses
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

from support.once import SHARED, once

_HERE = Path(__file__).parent
_FLAGS = ["-std=c++17", "-march=native", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE"]
_PARTS = ("cuda.cc", "fibers.cc", "memory.cc")
# Each access to memory calls a function of memory.cc. Unoptimized they compile no faster, and run
# for four times as long.
_KERNELS = ["-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fsanitize=thread", "-c"]
_KERNEL = re.compile(
    r'extern "C" __global__ void __launch_bounds__\((\d+)(?:, *\d+)?\) (\w+)\(([^)]*)\) \{'
)
_ALIGNED = r"(?:(?:alignas|__align__)\(\d+\) )?"
_SHARED = re.compile(rf"{_ALIGNED}__shared__ {_ALIGNED}(\w+) (\w+)\[(\d+)\];")
_DYNAMIC = re.compile(rf"extern __shared__ {_ALIGNED}(\w+) (\w+)\[\];")
_ASM = re.compile(r'asm volatile\((?P<text>(?:\s*"[^"]*")+)(?P<operands>[^;]*)\);')
# Between shared arrays lies what belongs to none of them.
_GAP = 64
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


@dataclasses.dataclass(frozen=True)
class Fault:
    """A change of a kernel's CUDA source: the `occurrence`-th match of a pattern is replaced."""

    pattern: str
    replacement: str
    kernel: str = ""
    occurrence: int = 0

    def planted(self, code: str) -> str:
        """The source with the fault, from the definition of `kernel` on."""
        begin = code.rindex(f" {self.kernel}(") if self.kernel else 0
        found = list(re.finditer(self.pattern, code[begin:]))
        assert len(found) > self.occurrence, f"no place for {self}"
        match = found[self.occurrence]
        start, end = (begin + at for at in match.span())
        return code[:start] + match.expand(self.replacement) + code[end:]


# What is planted into all that this process compiles.
faults: list[Fault] = []


def run(function: str, *args: Any, timeout: float = 600) -> Any:
    """The result of `module:function` of the tests with `args`, in a process with the stand-in.

    Raises AssertionError, with what the process said, where it ended without giving one.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
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


def libraries(folder: Path) -> list[Path]:
    """The stand-ins for NVIDIA's libraries, under their names, in one folder: what this test run
    shares, else `folder`.
    """
    shared = os.environ.get(SHARED)
    place = Path(shared) / "cuda_emulation" if shared else folder / "libraries"
    once(place, lambda: _make_libraries(place))
    return [place / "libcudart.so.13", place / "libcuda.so.1"]


def _make_libraries(folder: Path) -> None:
    folder.mkdir()
    versions = folder / "versions"
    versions.write_text("libcudart.so.13 { global: cuda*; };")
    runtime, driver = folder / "libcudart.so.13", folder / "libcuda.so.1"
    flags = ["-O2", "-flto", "-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={versions}"]
    _compile([str(_HERE / part) for part in _PARTS], runtime, *flags)
    # It holds the driver's functions too.
    _compile(["-x", "c++", os.devnull], driver, "-Wl,-soname,libcuda.so.1")


def install(folder: Path) -> None:
    """Loads the stand-in into this process, with what it compiles in `folder`."""
    import tvm
    import tvm_ffi

    for library in libraries(folder):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"))
    count = 0

    def compile_cuda(code: str, *_: Any) -> bytes:
        nonlocal count
        count += 1
        for fault in faults:
            code = fault.planted(code)
        source, library = folder / f"kernels{count}.cc", folder / f"kernels{count}.so"
        source.write_text(for_fibers(code))
        _compile([str(source)], source.with_suffix(".o"), *_KERNELS)
        # Without the sanitizer, whose functions are the stand-in's.
        _compile([str(source.with_suffix(".o"))], library)
        return str(library).encode()

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_cuda, override=True)


def seed(value: int) -> None:
    """Chooses another order in which threads and blocks take turns from now on."""
    ctypes.CDLL("libcudart.so.13").emulation_seed(ctypes.c_ulong(value))


def launches() -> tuple[int, int, int]:
    """Launches outside of graphs, launches that were captured, and replays of graphs so far."""
    counts = (ctypes.c_long * 3)()
    ctypes.CDLL("libcudart.so.13").emulation_counts(counts)
    return counts[0], counts[1], counts[2]


def for_fibers(code: str) -> str:
    """TVM's CUDA source as C++: shared memory is the block's, and kernels take an array."""
    code = _ASM.sub(_instruction, code)
    # Definitions, not declarations, have a brace.
    kernels = list(_KERNEL.finditer(code))
    pieces = [code[: kernels[0].start()]]
    starts = [match.start() for match in kernels] + [len(code)]
    for match, (begin, stop) in zip(kernels, itertools.pairwise(starts), strict=True):
        bound, name, parameters = match.groups()
        types = [re.sub(r" \w+$", "", p.strip()) for p in parameters.split(",") if p.strip()]
        args = ", ".join(f"*({ty}*)p[{i}]" for i, ty in enumerate(types))
        sizes = ", ".join([*(f"sizeof({ty})" for ty in types), "0"])
        body, shared = _shared_memory(code[begin:stop])
        pieces.append(
            f'{body}\nextern "C" void emulated_{name}(void** p) {{ {name}({args}); }}\n'
            f'extern "C" const size_t sizes_{name}[] = {{{sizes}}};\n'
            f'extern "C" const size_t shared_{name} = {shared};\n'
            f'extern "C" const unsigned bound_{name} = {bound};\n'
        )
    return "#define __restrict__\n" + "".join(pieces)


def _shared_memory(kernel: str) -> tuple[str, int]:
    """A kernel whose arrays are the block's, with room between them; and their bytes on a GPU."""
    offset = used = 0

    def place(match: re.Match[str]) -> str:
        nonlocal offset, used
        dtype, name, count = match.groups()
        size = _SIZES[dtype] * int(count)
        at, offset = offset, (offset + size + _GAP + 127) // 128 * 128
        used = (used + 63) // 64 * 64 + size
        return f"{dtype}* {name} = ({dtype}*)emulation::shared_array({at}, {size});"

    kernel = _SHARED.sub(place, kernel)
    return _DYNAMIC.sub(r"\1* \2 = (\1*)emulation::current->dynamic;", kernel), used


def _instruction(asm: re.Match[str]) -> str:
    """The call of include/ptx.h that an `asm` stands for."""
    text = "".join(re.findall(r'"([^"]*)"', asm["text"]))
    name, *operands = re.split(r"[\s,;]+", re.sub(r"[{}\[\]]", " ", text).strip(" ;"))
    given = re.findall(r'"[=+]?\w+"\s*\(((?:[^()]|\([^()]*\))*)\)', asm["operands"])
    values = [given[int(one[1:])] if one.startswith("%") else one for one in operands if one]
    return f"ptx::{re.sub(r'[.:]+', '_', name)}({', '.join(values)});"


def _compile(sources: list[str], library: Path, *flags: str) -> None:
    command = ["g++", *_FLAGS, f"-I{_HERE / 'include'}", f"-I{_HERE}", *sources]
    done = subprocess.run([*command, "-o", str(library), *flags], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ failed on {' '.join(sources)}:\n{done.stderr[:4000]}")


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
