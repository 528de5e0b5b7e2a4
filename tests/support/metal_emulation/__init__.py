"""A GPU of Apple's made of fibers: TVM's virtual machine over generated Metal source.

The source is compiled as C++ with a header in place of Metal's standard library, simdgroup matrices
and all, and launched by a device of ours. Memory starts as NaN, a buffer or a threadgroup's array
that is written beyond its ends is noticed, and so are threads that wait at different barriers.
Threads of a threadgroup take turns where they meet, in a random order; so a missing barrier mostly
shows in the result, and a race that needs two threads at one time, or two threadgroups, does not.
"""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from support import devices

_INCLUDE = Path(__file__).parent / "include"
# Locals start as NaN of float16, and as -1.7e38.
_FLAGS = ["-std=c++20", "-O2", "-mf16c", "-mavx2", "-ftrivial-auto-var-init=pattern"]
_FLAGS += ["-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-w"]
_SIGNATURE = re.compile(r"^kernel void (\w+)\((.*?)\) \{$", re.M | re.S)
_BUFFER = re.compile(r"device (\w+)\* (\w+) \[\[")
_ARGUMENTS = re.compile(r"constant (\w+)& arg \[\[")
_PLACE = re.compile(r"(uint\d?) (?:blockIdx|threadIdx) \[\[")
_ARRAY = re.compile(r"^( +)threadgroup (\w+) (\w+)\[(\d+)\];$", re.M)
_INCLUDED = re.compile(r"^(#include.*|using namespace metal;)\n", re.M)
_BYTES = {"half": 2, "float": 4, "int": 4, "uint": 4, "half4": 8, "float4": 16}
# Of engine.h.
_MEMORY, _GAP = 32 * 1024, 64
_GUARD, _AROUND = 0xA5, 4096
_POD = {"i": "q", "u": "Q", "f": "f4x"}


def missing() -> str | None:
    """Why Metal's source does not run here; None where it does."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "Metal's source runs on x86-64 Linux only"
    return None if shutil.which("g++") else "Metal's source needs g++"


@cache
def install(folder: Path) -> Device:
    """Gives TVM's runtime in this process the device `metal`; its library is kept in `folder`."""
    device = Device()
    devices.install("metal", device, folder, exists=False)
    return device


class Device:
    """What TVM asks of a device; and how many kernels were launched, by name."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="metal-")
        self.launches: dict[str, int] = {}
        # A pattern in what is compiled from now on, and what takes the place of its first match.
        self.fault: tuple[str, str] | None = None
        # All that was loaded: the source of each kernel.
        self.sources: dict[str, str] = {}
        self._buffers: dict[int, np.ndarray] = {}
        self._modules: list[tuple[dict[str, devices.Shader], ctypes.CDLL]] = []

    def allocate(self, size: int) -> int:
        """A new buffer, full of NaN, between bytes that are nobody's."""
        whole = np.full(size + 2 * _AROUND + _AROUND, 0xFF, np.uint8)
        skipped = -whole.ctypes.data % _AROUND
        whole = whole[skipped : skipped + size + 2 * _AROUND]
        whole[:_AROUND] = whole[-_AROUND:] = _GUARD
        address = int(whole.ctypes.data) + _AROUND
        self._buffers[address] = whole
        return address

    def release(self, number: int) -> None:
        # Launches that wrote beyond it have failed; TVM calls this where nothing may be raised.
        del self._buffers[number]

    def wait(self) -> None:
        """Nothing is ever under way."""

    def write(self, source: int, number: int, offset: int, size: int) -> None:
        ctypes.memmove(number + offset, source, size)

    def read(self, number: int, offset: int, target: int, size: int) -> None:
        ctypes.memmove(target, number + offset, size)

    def copy(self, source: int, from_offset: int, target: int, offset: int, size: int) -> None:
        ctypes.memmove(target + offset, source + from_offset, size)

    def load(self, data: bytes) -> int:
        """The number of a library's kernels."""
        reader = devices.Reader(bytes(data))
        assert reader.text() == "metal"
        shaders = reader.shaders()
        self.sources |= {name: shader.source for name, shader in shaders.items()}
        stem = Path(self._scratch.name) / f"kernels{len(self._modules)}"
        source, library = stem.with_suffix(".cc"), stem.with_suffix(".so")
        pieces = [self._prepared(name, shader.source) for name, shader in shaders.items()]
        source.write_text("#include <metal_stdlib>\n" + "".join(pieces), encoding="utf-8")
        command = ["g++", *_FLAGS, f"-I{_INCLUDE}", str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
        self._modules.append((shaders, ctypes.CDLL(str(library))))
        return len(self._modules) - 1

    def kernel(self, module: int, name: str) -> Callable[..., None] | None:
        """A function that launches a kernel; None where the library has none of this name."""
        shaders, library = self._modules[module]
        if name not in shaders:
            return None
        shader, run = shaders[name], library[f"run_{name}"]
        run.restype = ctypes.c_char_p
        buffers = [n for n, kind in enumerate(shader.arguments) if kind == "buffer"]
        values = [n for n, kind in enumerate(shader.arguments) if kind != "buffer"]
        packing = struct.Struct("<" + "".join(_POD[shader.arguments[n]] for n in values))

        def launch(*args: Any) -> None:
            self.launches[name] = self.launches.get(name, 0) + 1
            given = [devices.number(args[n]) for n in buffers]
            extents = dict(zip(shader.places, args[len(shader.arguments) :], strict=True))
            failure = run(
                (ctypes.c_void_p * max(1, len(given)))(*given),
                packing.pack(*(args[n] for n in values)),
                *(
                    (ctypes.c_uint32 * 3)(*(extents.get(f"{what}Idx.{axis}", 1) for axis in "xyz"))
                    for what in ("block", "thread")
                ),
            )
            assert failure is None, f"{name}: {failure.decode()}"
            for whole in self._buffers.values():
                ends = np.concatenate((whole[:_AROUND], whole[-_AROUND:]))
                assert (ends == _GUARD).all(), f"{name}: a buffer is written beyond its ends"

        return launch

    def _prepared(self, name: str, text: str) -> str:
        if self.fault is not None:
            text, count = re.subn(*self.fault, text, count=1)
            assert count, f"no place for {self.fault}"
        return _for_fibers(name, text)


def _for_fibers(name: str, source: str) -> str:
    """A kernel's source as C++, in a namespace of its own, and a function that launches it."""
    found = _SIGNATURE.search(source)
    assert found is not None and found[1] == name
    arrays: list[tuple[int, int]] = []
    offset = used = 0

    def place(match: re.Match[str]) -> str:
        nonlocal offset, used
        indent, kind, array, count = match.groups()
        size = _BYTES[kind] * int(count)
        arrays.append((offset, size))
        at, offset = offset, (offset + size + _GAP + 15) // 16 * 16
        used += size
        return f"{indent}{kind}* {array} = ({kind}*)(engine::engine.memory + {at});"

    meets = re.search(r"\b(threadgroup_barrier|simd_\w+|simdgroup_\w+)\(", source) is not None
    body = _ARRAY.sub(place, _INCLUDED.sub("", source))
    assert used <= _MEMORY, f"{name}: {used} bytes of threadgroup memory"
    given = [f"({kind}*)buffers[{n}]" for n, (kind, _) in enumerate(_BUFFER.findall(found[2]))]
    if (arguments := _ARGUMENTS.search(found[2])) is not None:
        given.append(f"*({arguments[1]}*)arg")
    given += [
        {"uint": f"{of}.x", "uint2": f"uint2{{{of}.x, {of}.y}}"}.get(
            kind, f"uint3{{{of}.x, {of}.y, {of}.z}}"
        )
        for kind, of in zip(_PLACE.findall(found[2]), "bt", strict=False)
    ]
    placed = ", ".join(f"{{{at}, {size}}}" for at, size in arrays)
    return f"""
namespace of_{name} {{
using namespace metal;
{body}
extern "C" const char* run_{name}(void** buffers, void* arg, engine::Index* grid,
                                  engine::Index* size) {{
  return engine::launch(*grid, *size, {str(meets).lower()}, {{{placed}}},
                        [=](engine::Index b, engine::Index t) {{ {name}({", ".join(given)}); }});
}}
}}
"""
