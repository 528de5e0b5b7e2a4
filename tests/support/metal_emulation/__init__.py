"""Runs a kernel's generated Metal source on this CPU: a header stands in for the language."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_INCLUDE = Path(__file__).parent / "include"
_FLAGS = ["-std=c++20", "-O1", "-mf16c", "-pthread", "-shared", "-fPIC", "-w"]
_SIGNATURE = re.compile(r"^kernel void (\w+)\((.*?)\) \{$", re.M | re.S)
_BUFFER = re.compile(r"device (\w+)\* (\w+) \[\[")
_ARGUMENTS = re.compile(r"constant (\w+)& arg \[\[")

Extent = tuple[int, int, int]


class MetalKernel:
    """One kernel of a source, compiled into `folder`."""

    def __init__(self, source: str, folder: Path) -> None:
        found = _SIGNATURE.search(source)
        assert found is not None
        self.buffers = [name for _, name in _BUFFER.findall(found[2])]
        arguments = _ARGUMENTS.search(found[2])
        assert arguments is not None
        # Memory of a threadgroup is shared by its threads, which run as threads of one process.
        source = re.sub(r"^( +)threadgroup (\w+ \w+\[)", r"\1static \2", source, flags=re.M)
        given = [f"({kind}*)buffers[{i}]" for i, (kind, _) in enumerate(_BUFFER.findall(found[2]))]
        source += f"""
extern "C" void run(void** buffers, {arguments[1]}* arg, uint3* grid, uint3* block) {{
  launch(*grid, *block, [=](uint3 b, uint3 t) {{ {found[1]}({", ".join(given)}, *arg, b, t); }});
}}
"""
        path, library = folder / "kernel.cc", folder / "kernel.so"
        path.write_text(source, encoding="utf-8")
        command = ["g++", *_FLAGS, f"-I{_INCLUDE}", str(path), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        self._run = ctypes.CDLL(str(library)).run

    def __call__(
        self, arrays: dict[str, np.ndarray], arguments: Sequence[int], grid: Extent, block: Extent
    ) -> None:
        """Launches it over `arrays` by the buffers' names, and int64 arguments."""
        buffers = [arrays[name].ctypes.data for name in self.buffers]
        self._run(
            (ctypes.c_void_p * len(buffers))(*buffers),
            (ctypes.c_int64 * len(arguments))(*arguments),
            (ctypes.c_uint32 * 3)(*grid),
            (ctypes.c_uint32 * 3)(*block),
        )
