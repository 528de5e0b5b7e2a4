"""Runs kernels as programs of their own: on this CPU, on a bare PC in Bochs, on aarch64 in qemu."""

from __future__ import annotations

import abc
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import tvm
from compiling import Array, Case, kernel, poisoned
from tvm import IRModule
from tvm.target import Target

from mlc_rwkv_world.compiler.library import lowering
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.runtime.cpu import missing_features

BARE = Path(__file__).parent / "bare"
# A kernel, its inputs, and shape and dtype of its result.
Call = tuple[str, Sequence[Array], tuple[tuple[int, ...], str]]
_CODES = {"i": 0, "u": 1, "f": 2}
_ALIGNED = 64
# For hangs, not for speed.
_PATIENCE_S = 600


class Machine(abc.ABC):
    """What runs a program of kernels for one target; skips the test where it cannot."""

    compiler = "gcc"
    sources: tuple[str, ...] = ("run.c", "linux.c")
    flags: tuple[str, ...] = ()
    # Found on the PATH, and the Debian packages they are in.
    tools: Mapping[str, str] = {"gcc": "gcc"}

    def __init__(self, target: str) -> None:
        for tool, package in self.tools.items():
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is missing: apt-get install {package}")
        self._resolved = resolve(target)

    @property
    def target(self) -> Target:
        return self._resolved.target

    @abc.abstractmethod
    def start(self, program: Path) -> bytes:
        """What the program sends."""

    def __call__(
        self, cases: Mapping[str, Case], calls: Sequence[Call], folder: Path
    ) -> list[Array]:
        """The results of calls of the kernels of some cases, which start as NaN or -1."""
        objects = self._compiled(cases, folder)
        outs = [poisoned(*out) for _, _, out in calls]
        _write_calls(calls, outs, folder)
        program = folder / "program"
        options = ["-O1", "-Wall", "-Werror", f"-I{BARE}", *self.flags, "-o", str(program)]
        sources = [*(str(BARE / name) for name in self.sources), "calls.c"]
        self._finish([self.compiler, *options, *sources, *map(str, objects)], folder)
        sent = self.start(program)
        assert sent.endswith(b"done"), sent[-300:].decode(errors="replace")
        size = sum(_room(out) for out in outs)
        assert len(sent) == size + len(b"done")
        return [
            np.frombuffer(sent, out.dtype, out.size, at).reshape(out.shape)
            for out, at in zip(outs, _places(outs), strict=True)
        ]

    def _compiled(self, cases: Mapping[str, Case], folder: Path) -> list[Path]:
        functions = {name: kernel(case, self.target, name) for name, case in cases.items()}
        with self.target, lowering(self.target):
            module = tvm.compile(IRModule(functions), target=self.target).mod
        objects: list[Path] = []
        for part in [module, *module.imports]:
            if part.kind == "llvm":
                objects.append(folder / f"kernels{len(objects)}.o")
                part.write_to_file(str(objects[-1]), "o")
        return objects

    def _finish(self, command: Sequence[str], folder: Path) -> bytes:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_PATIENCE_S)
        assert done.returncode == 0, f"{command[0]}: {done.stderr.decode(errors='replace')}"
        return done.stdout


class Native(Machine):
    """This CPU, where it has what the target's code uses."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        if platform.machine() != "x86_64" or platform.system() != "Linux":
            pytest.skip("a target of Linux on x86-64")
        if missing := missing_features(self._resolved.cpu_features()):
            pytest.skip(f"this CPU lacks {', '.join(missing)}")

    def start(self, program: Path) -> bytes:
        return self._finish([str(program)], program.parent)


class Qemu(Machine):
    """aarch64 with dot products, by qemu's emulation of Linux programs."""

    compiler = "aarch64-linux-gnu-gcc"
    flags = ("-static",)
    tools: Mapping[str, str] = {
        "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        "qemu-aarch64-static": "qemu-user-static",
    }

    def start(self, program: Path) -> bytes:
        return self._finish(["qemu-aarch64-static", str(program)], program.parent)


class Bochs(Machine):
    """A bare PC with AVX-512 and VNNI, which boots the program from its disk."""

    sources = ("start.S", "run.c", "pc.c")
    flags = (
        *("-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector", "-nostdlib", "-static"),
        *(f"-Wl,-T,{BARE / 'image.ld'}", "-Wl,--build-id=none"),
    )
    tools: Mapping[str, str] = {"gcc": "gcc", "bochs": "bochs-term", "script": "bsdutils"}
    _BIOS = "/usr/share/bochs/BIOS-bochs-latest"
    _VIDEO_BIOS = "/usr/share/vgabios/vgabios.bin"
    _CYLINDER = 16 * 63 * 512

    def __init__(self, target: str) -> None:
        super().__init__(target)
        if platform.machine() != "x86_64":
            pytest.skip("its boot code is assembled by an x86 gcc")
        for bios in (self._BIOS, self._VIDEO_BIOS):
            if not Path(bios).exists():
                pytest.skip(f"{bios} is missing: apt-get install bochs-term brings it")

    def start(self, program: Path) -> bytes:
        folder = program.parent
        # `ld --oformat=binary` does not resolve the kernels' indirect references to variables.
        self._finish(["objcopy", "-O", "binary", str(program), "disk"], folder)
        cylinders = (folder / "disk").stat().st_size // self._CYLINDER + 1
        with (folder / "disk").open("r+b") as disk:
            disk.truncate(cylinders * self._CYLINDER)
        (folder / "bochsrc").write_text(
            f"""cpu: model=corei7_icelake_u, ips=50000000
memory: guest=32, host=32
romimage: file={self._BIOS}
vgaromimage: file={self._VIDEO_BIOS}
ata0-master: type=disk, path=disk, mode=flat, cylinders={cylinders}, heads=16, spt=63
boot: disk
com1: enabled=1, mode=file, dev=serial
display_library: term
log: log
panic: action=fatal
error: action=ignore
"""
        )
        # Debian's build starts in its debugger.
        (folder / "commands").write_text("c\nquit\n")
        (folder / "serial").touch()
        command = ["script", "-q", "-c", "bochs -q -f bochsrc -rc commands", "/dev/null"]
        try:
            # Switched off, Bochs ends as if it had failed.
            subprocess.run(
                command,
                cwd=folder,
                env=os.environ | {"TERM": "vt100"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=_PATIENCE_S,
            )
        finally:
            log = folder / "log"
            print(log.read_text(errors="replace")[-2000:] if log.exists() else "Bochs did not log")
        return (folder / "serial").read_bytes()


def _room(array: Array) -> int:
    return -(-array.nbytes // _ALIGNED) * _ALIGNED


def _places(outs: Sequence[Array]) -> list[int]:
    """Where each result starts."""
    return [sum(map(_room, outs[:i])) for i in range(len(outs))]


def _write_calls(calls: Sequence[Call], outs: Sequence[Array], folder: Path) -> None:
    """Writes calls.c, which calls.h describes, and the data it includes."""
    start = b"".join(out.tobytes().ljust(_room(out), b"\xff") for out in outs)
    lines = [
        '#include "calls.h"',
        _data("results", start, folder),
        f"const size_t results_size = {len(start)}, call_count = {len(calls)};",
        *(f"extern Kernel __tvm_ffi_{name};" for name in sorted({name for name, _, _ in calls})),
    ]
    rows: list[str] = []
    for i, ((name, inputs, _), out, place) in enumerate(
        zip(calls, outs, _places(outs), strict=True)
    ):
        args = []
        for j, array in enumerate(map(np.ascontiguousarray, inputs)):
            lines += [f"extern char in_{i}_{j}[];", _data(f"in_{i}_{j}", array.tobytes(), folder)]
            args.append(_tensor(array, f"in_{i}_{j}"))
        args.append(_tensor(out, f"results + {place}"))
        lines.append(f"static const Any args_{i}[] = {{{', '.join(args)}}};")
        rows.append(f"{{__tvm_ffi_{name}, args_{i}, {len(args)}}}")
    lines.append(f"const Call calls[] = {{{', '.join(rows)}}};")
    (folder / "calls.c").write_text("\n".join(lines) + "\n")


def _data(symbol: str, content: bytes, folder: Path) -> str:
    (folder / symbol).write_bytes(content)
    return (
        f'__asm__(".data\\n.balign {_ALIGNED}\\n.globl {symbol}\\n{symbol}: .incbin '
        f'\\"{symbol}\\"\\n.text");'
    )


def _tensor(array: Array, place: str) -> str:
    """An argument: the type index of a tensor, and a pointer to it."""
    shape = ", ".join(map(str, array.shape))
    strides = ", ".join(str(s // array.itemsize) for s in array.strides)
    kind = f"{_CODES[array.dtype.kind]}, {8 * array.itemsize}, 1"
    return (
        f"{{7, 0, &(Tensor){{{place}, 1, 0, {array.ndim}, {kind}, (int64_t[]){{{shape}}}, "
        f"(int64_t[]){{{strides}}}, 0}}}}"
    )
