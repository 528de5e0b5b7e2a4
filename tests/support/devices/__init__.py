"""Devices of TVM's runtime that it lacks here, served by Python: what a GPU's driver is asked for
are the methods of an object.

`allocate(bytes) -> number`, `release(number)`, `wait()`, `write(address, number, offset, bytes)`,
`read(number, offset, address, bytes)`, `copy(number, offset, number, offset, bytes)`,
`load(a library's kernels) -> module`, `kernel(module, name) -> what launches it, or None`. TVM's
virtual machine then runs a whole library, whose host is this CPU.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.once import once

_SOURCE = Path(__file__).parent / "device.cc"
_ASKED = ("allocate", "release", "wait", "write", "read", "copy", "load", "kernel")


def install(kind: str, device: object, folder: Path, *, exists: bool = True) -> None:
    """Gives TVM's runtime in this process a device `kind`; one that does not `exist` is not found
    by who looks for devices. What is compiled for it stays in `folder`.
    """
    import tvm  # noqa: F401
    import tvm_ffi

    for name in _ASKED:
        function = getattr(device, name)
        tvm_ffi.register_global_func(f"rwkv_world_tests.{kind}.{name}", function, override=True)
    library = folder / f"{kind}.so"
    once(library, lambda: _compile(kind, exists, library))
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _compile(kind: str, exists: bool, path: Path) -> None:
    import tvm
    import tvm_ffi

    roots = [Path(str(module.__file__)).parent for module in (tvm, tvm_ffi)]
    include = [roots[0] / "include", roots[1] / "include"]
    include.append(roots[1] / "3rdparty" / "dlpack" / "include")
    flags = ["-std=c++17", "-O0", "-shared", "-fPIC", "-w", *(f"-I{folder}" for folder in include)]
    flags += [f'-DKIND="{kind}"', f"-DEXISTS={int(exists)}"]
    # Those that this process has loaded.
    flags += [str(roots[0] / "lib" / "libtvm_runtime.so"), str(roots[1] / "lib" / "libtvm_ffi.so")]
    command = ["g++", str(_SOURCE), "-o", str(path), *flags]
    subprocess.run(command, check=True, capture_output=True, text=True)


def number(pointer: Any) -> int:
    """The number of a buffer that a launch is given."""
    found = pointer.value if isinstance(pointer, ctypes.c_void_p) else pointer
    return int(found or 0)


@dataclass(frozen=True)
class Shader:
    """A kernel: its source, the types of its arguments, and where further ones go."""

    source: str
    arguments: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def written(self) -> list[bool]:
        """Which of its buffers it writes."""
        (tag,) = (tag for tag in self.tags if tag.startswith("paramWriteAccess:"))
        return [flag.strip() == "1" for flag in tag.partition(":")[2].strip("[]").split(",")]

    @property
    def places(self) -> list[str]:
        """What the arguments of a launch after the kernel's own say: "blockIdx.x" and others."""
        return [tag for tag in self.tags if "Idx." in tag]


class Reader:
    """Values as TVM writes them: lengths of 64 bits, and texts after theirs."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def count(self) -> int:
        (found,) = struct.unpack("<Q", self.take(8))
        return int(found)

    def text(self) -> str:
        return self.take(self.count()).decode()

    def shaders(self) -> dict[str, Shader]:
        """The kernels of a library, by name."""
        described = {self.text(): self._described() for _ in range(self.count())}
        sources = {self.text(): self.text() for _ in range(self.count())}
        assert self.at == len(self.data)
        return {name: Shader(sources[name], *given) for name, given in described.items()}

    def _described(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        self.text()
        # DLPack's codes: 0 int, 1 uint, 2 float, 3 a pointer.
        kinds = [struct.unpack("<BBH", self.take(4)) for _ in range(self.count())]
        tags = [self.text() for _ in range(self.count())]
        self.take(4 * self.count())
        return tuple("iuf"[code] if code < 3 else "buffer" for code, _, _ in kinds), tuple(tags)
