"""Code generation, and the file that holds its result."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule
from tvm.ir.transform import PassContext
from tvm.support import cc, tar
from tvm.target import Target

from mlc_rwkv_world.artifact.places import utf8_path
from mlc_rwkv_world.artifact.storage import out_of_space
from mlc_rwkv_world.compiler import cuda
from mlc_rwkv_world.compiler.target import BuildTarget
from mlc_rwkv_world.errors import TargetError, is_out_of_memory, out_of_memory

_SYSTEM_ENDINGS = {"darwin": ".dylib", "macos": ".dylib", "windows": ".dll"}
# Ending of the shader source that a device module can print.
_SHADERS = {"metal": ".metal", "opencl": ".cl", "webgpu": ".wgsl"}


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


def require_linker(target: BuildTarget, system_lib: bool) -> None:
    """Raise TargetError where a library is to be linked here, and nothing here links."""
    if ending(target, system_lib) == ".tar":
        return
    compiler = cc.get_cc()
    if compiler is None or shutil.which(compiler) is None:
        found = "none is on the PATH" if compiler is None else f"{compiler!r} (CXX, CC) is none"
        raise TargetError(
            f"linking a library needs a C++ compiler, and {found}; install g++ or clang, or build "
            "objects to link elsewhere with --system-lib."
        )


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


# Of writing a library, beside the phases of `pipeline`.
PARTS = ("code generation", "linking")
# What a library and its objects may take. LLVM ends the process where it cannot write an object.
_ROOM = 32 << 20


# Passes of TVM's that leave a CPU's kernels as they are, and take half of the time before LLVM's:
# what concerns threads of a GPU, types and annotations that no kernel has, and what LLVM does
# anyway.
_IDLE = (
    "CompactBufferAllocation",
    "FP8ComputeLegalize",
    "FP8StorageLegalize",
    "HoistIfThenElse",
    "InferFragment",
    "InjectDoubleBuffer",
    "InjectPermutedLayout",
    "InjectSoftwarePipeline",
    "InjectVirtualThread",
    "LowerAutoCopy",
    "LowerThreadAllreduce",
    "LowerVtcmAlloc",
    "MergeSharedMemoryAllocations",
    "RemoveNoOp",
    "RenormalizeSplitPattern",
    "ThreadSync",
    "TransformMmaBufferLayout",
    "UnifyThreadBinding",
)
# The names of rooms in which TVM's releases keep them.
_ROOMS = ("s_tir", "tirx", "tir")
_DISABLED = (".disable_assert", ".disable_cse_tir")


def lowering(target: Target) -> PassContext:
    """How kernels for a target become machine code: on a CPU without what they do not need.

    The idle passes leave the code as it is. TVM's own search for common subexpressions takes a
    fifth of all code generation on unrolled loops, LLVM does it again to the same bits, and what
    TVM keeps in variables fills the registers: products of eight rows by AVX-512 were a fifth to a
    half slower. That a kernel looks at each of its arguments is most of the code of a library;
    what they are was checked by the function that calls it. Shaders are compiled elsewhere, and
    keep all.
    """
    if target.kind.name != "llvm":
        return PassContext()
    # TVM's releases name the options' room differently, too.
    named = [name for name in PassContext.list_configs() if name.endswith(_DISABLED)]
    idle = [f"{room}.{name}" for room in _ROOMS for name in _IDLE]
    return PassContext(config=dict.fromkeys(named, True), disabled_pass=idle)


def write(
    mod: IRModule,
    target: BuildTarget,
    path: Path,
    starting: Callable[[str], None] = lambda part: None,
) -> list[Path]:
    """Compiles a lowered module and writes it to `path`, whose ending `ending` gave.

    `starting` hears of each of PARTS when it begins.

    A module with the attribute `system_lib_prefix` becomes objects to link into a program.

    Returns the files written: the library, and the shaders' source where the library is a set of
    objects for another machine's linker. Raises TargetError where compiling or linking fails.
    """
    system_lib = "system_lib_prefix" in (mod.attrs or {})
    device = cuda.compiling(target.target) if target.kind == "cuda" else target.target
    require_linker(target, system_lib)
    if shutil.disk_usage(path.parent).free < _ROOM:
        raise out_of_space(path.parent)
    generating, linking = PARTS
    try:
        starting(generating)
        with device, lowering(target.target):
            executable = tvm.relax.build(
                mod,
                target=target.target,
                relax_pipeline=tvm.transform.Sequential([]),
                system_lib=system_lib,
            )
        starting(linking)
        packer = {"fcompile": tar.tar} if path.suffix == ".tar" else {}
        # What a killed build leaves lies beside the library, where the next one clears it.
        with (
            tempfile.TemporaryDirectory(prefix="objects-", dir=path.parent) as objects,
            utf8_path(Path(objects)) as folder,
        ):
            executable.export_library(str(path), workspace_dir=str(folder), **packer)
    except (tvm.error.InternalError, RuntimeError, ValueError, OSError) as err:
        if "No space left on device" in str(err):
            raise out_of_space(path.parent) from err
        if is_out_of_memory(err):
            raise out_of_memory(f" building for {target.kind}") from err
        reason = next(iter(str(err).strip().splitlines()[-1:]), type(err).__name__)
        raise TargetError(f"building for {target.describe()} failed: {reason}") from err
    written = [path]
    if path.suffix == ".tar":
        written += _write_shaders(executable.mod, path)
    return written


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
