"""Code generation, and the file that holds its result."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule
from tvm.support import tar

from mlc_rwkv_world.artifact.storage import out_of_space
from mlc_rwkv_world.compiler import cuda
from mlc_rwkv_world.compiler.target import BuildTarget
from mlc_rwkv_world.errors import TargetError

_SYSTEM_ENDINGS = {"darwin": ".dylib", "macos": ".dylib", "windows": ".dll"}
# Ending of the shader source that a device module can print.
_SHADERS = {"metal": ".metal", "opencl": ".cl"}


def ending(target: BuildTarget, system_lib: bool) -> str:
    """`.so` or the host system's own ending; `.tar` of objects where linking is left to others."""
    triple = str(target.host.attrs.get("mtriple", ""))
    if system_lib or _foreign(triple):
        return ".tar"
    return next((end for name, end in _SYSTEM_ENDINGS.items() if name in triple), ".so")


def _foreign(triple: str) -> bool:
    """Whether this machine's linker cannot make a library for the host `triple`."""
    ours = {"Darwin": ("apple", "darwin", "macos"), "Linux": ("linux",)}
    names = ours.get(platform.system(), ())
    machine = platform.machine().replace("AMD64", "x86_64")
    arch = triple.split("-")[0].replace("arm64", "aarch64")
    return not any(name in triple for name in names) or arch != machine.replace("arm64", "aarch64")


def system_lib_prefix(name: str) -> str:
    """What the symbols of the system library of the model `name` start with."""
    return re.sub(r"\W", "_", name, flags=re.ASCII) + "_"


def notes(target: BuildTarget, paths: Sequence[Path]) -> tuple[str, ...]:
    """What to know of the files that `write` has written."""
    if target.kind == "cuda" and not cuda.compiles():
        arch = target.target.attrs["arch"]
        return (
            f"no nvcc or no libcudart here: {paths[0].name} holds CUDA source for {arch}, to be "
            "compiled whenever it is loaded, which needs nvcc there",
        )
    objects = [path.name for path in paths if path.suffix == ".tar"]
    if not objects:
        return ()
    triple = str(target.host.attrs.get("mtriple", ""))
    why = f"no linker for {triple} here: " if _foreign(triple) else ""
    sources = [path.name for path in paths if path.suffix in _SHADERS.values()]
    also = f"; {sources[0]} is the shaders' source" if sources else ""
    return (f"{why}{objects[0]} holds object files, to be linked where they will run{also}",)


# What a library and its objects may take. LLVM ends the process where it cannot write an object.
_ROOM = 32 << 20


def write(mod: IRModule, target: BuildTarget, path: Path) -> list[Path]:
    """Compiles a lowered module and writes it to `path`, whose ending `ending` gave.

    A module with the attribute `system_lib_prefix` becomes objects to link into a program.

    Returns the files written: the library, and the shaders' source where the library is a set of
    objects for another machine's linker. Raises TargetError where compiling or linking fails.
    """
    system_lib = "system_lib_prefix" in (mod.attrs or {})
    device = cuda.compiling(target.target) if target.kind == "cuda" else target.target
    if path.suffix != ".tar":
        _require_compiler()
    if shutil.disk_usage(path.parent).free < _ROOM:
        raise out_of_space(path.parent)
    try:
        with device:
            executable = tvm.relax.build(
                mod,
                target=target.target,
                relax_pipeline=tvm.transform.Sequential([]),
                system_lib=system_lib,
            )
        packer = {"fcompile": tar.tar} if path.suffix == ".tar" else {}
        # What a killed build leaves lies beside the library, where the next one clears it.
        with tempfile.TemporaryDirectory(prefix="objects-", dir=path.parent) as objects:
            executable.export_library(str(path), workspace_dir=objects, **packer)
    except (tvm.error.InternalError, RuntimeError, ValueError, OSError) as err:
        if "No space left on device" in str(err):
            raise out_of_space(path.parent) from err
        reason = next(iter(str(err).strip().splitlines()[-1:]), type(err).__name__)
        raise TargetError(f"building for {target.describe()} failed: {reason}") from err
    written = [path]
    if path.suffix == ".tar":
        written += _write_shaders(executable.mod, path)
    return written


def _require_compiler() -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++", "clang", "gcc", "cc")):
        raise TargetError(
            "linking a library needs a C++ compiler, and none is on the PATH; install g++ or clang."
        )


def _write_shaders(module: Any, path: Path) -> list[Path]:
    written = []
    for device in _device_modules(module):
        if str(device.kind) in _SHADERS:
            source = path.with_suffix(_SHADERS[str(device.kind)])
            # It may be a link to an older one, which stays as it is.
            source.unlink(missing_ok=True)
            source.write_text(device.inspect_source(), encoding="utf-8")
            written.append(source)
    return written


def _device_modules(module: Any) -> Sequence[Any]:
    found, waiting = [], [module]
    while waiting:
        current = waiting.pop()
        found.append(current)
        waiting += list(current.imports)
    return found
