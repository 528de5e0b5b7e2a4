"""TVM's runtime library by its global functions.

`import tvm` defines classes for the whole compiler, which takes a tenth of a second: as long as
loading a small model. What runs models needs none of them. Where a program has imported TVM, this
is the same library.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm_ffi
from tvm_ffi.libinfo import load_lib_ctypes

from mlc_rwkv_world.artifact.places import utf8_path
from mlc_rwkv_world.errors import is_out_of_memory, out_of_memory

# What TVM's generated code assumes of every tensor's address.
ALIGNMENT = 64
_LIBRARY = "tvm_runtime"
# Of the virtual machine's ways to allocate.
_POOLED = 2
# Of a device's attributes.
_EXISTS = 0


@cache
def library() -> Any:
    """The runtime library, a ctypes.CDLL, loaded where it was not before."""
    spec = None if "tvm" in sys.modules else find_spec("tvm")
    if spec is not None and spec.submodule_search_locations:
        try:
            folders = _folders(Path(spec.submodule_search_locations[0]))
            return load_lib_ctypes("tvm", _LIBRARY, "RTLD_GLOBAL", extra_lib_paths=folders)
        except (OSError, RuntimeError):
            # Then TVM has to say why.
            pass
    from tvm.base import _LOADED_LIBS

    return _LOADED_LIBS[_LIBRARY]


def _folders(package: Path) -> list[Path]:
    """Where TVM looks itself: as the environment says, in the package, in a build from source."""
    given = os.environ.get("TVM_LIBRARY_PATH")
    top = package / ".." / ".."
    return [*([Path(given)] if given else []), package / "lib", top / "build" / "lib", top / "lib"]


@cache
def function(name: str) -> Any:
    """A global function of the runtime."""
    library()
    return tvm_ffi.get_global_func(name)


def exists(device: Any) -> bool:
    """Whether this machine has a device."""
    kind = device.dlpack_device_type()
    return bool(function("runtime.GetDeviceAttr")(kind, device.index, _EXISTS) != 0)


def machine(path: Path, device: Any) -> Any:
    """A compiled library's virtual machine, which gives functions by name, on a device."""
    library()
    # The system looks for a plain name in its own folders, and not in the current one.
    with utf8_path(path.absolute()) as name:
        loaded = tvm_ffi.load_module(str(name), keep_module_alive=False)
    found = loaded["vm_load_executable"]()
    # Shapes are computed on a CPU.
    devices = [device] if device.dlpack_device_type() == 1 else [device, tvm_ffi.device("cpu", 0)]
    found["vm_initialization"](
        *(word for one in devices for word in (one.dlpack_device_type(), one.index, _POOLED))
    )
    return found


def empty(shape: Sequence[int], dtype: str, device: Any) -> Any:
    """A tensor on a device, its content undefined; OutOfMemoryError where there is no room."""
    allocate = function("runtime.TVMTensorAllocWithScope")
    try:
        return allocate(tvm_ffi.Shape(list(shape)), _dtype(dtype), device, None)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(f" for a tensor {dtype} {list(shape)} on {device}") from error


def tensor(array: npt.NDArray[Any], device: Any) -> Any:
    """A copy of an array on a device."""
    made = empty(array.shape, _name(array.dtype), device)
    _copy_in(made, np.ascontiguousarray(array))
    return made


def shared(array: npt.NDArray[Any]) -> Any:
    """An aligned array as a tensor on the CPU that shares its memory."""
    return tvm_ffi.from_dlpack(array, require_alignment=ALIGNMENT, require_contiguous=True)


def fill(target: Any, array: npt.NDArray[Any]) -> None:
    """Overwrite a tensor with an array of its shape and type."""
    source = np.ascontiguousarray(array)
    if source.shape != tuple(target.shape) or _name(source.dtype) != str(target.dtype):
        raise ValueError(f"{source.dtype} {source.shape} for {target.dtype} {target.shape}")
    _copy_in(target, source)


def copy(source: Any, target: Any) -> None:
    """Overwrite a tensor with another, on any device."""
    function("runtime.TVMTensorCopyFromTo")(source, target)


def view(whole: Any, shape: Sequence[int], offset: int) -> Any:
    """A part of a tensor, from a byte on."""
    create = function("runtime.TVMTensorCreateView")
    return create(whole, tvm_ffi.Shape(list(shape)), whole.dtype, offset)


def array(source: Any) -> npt.NDArray[Any]:
    """A copy of a tensor, float32 or integer, as an array."""
    made = np.empty(tuple(source.shape), str(source.dtype))
    function("runtime.TVMTensorCopyToBytes")(source, _pointer(made), made.nbytes)
    return made


def _copy_in(target: Any, source: npt.NDArray[Any]) -> None:
    function("runtime.TVMTensorCopyFromBytes")(target, _pointer(source), source.nbytes)


def _pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


# Both are asked for several times a step, and computed from scratch each time.
@cache
def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype)


@cache
def _dtype(name: str) -> Any:
    return tvm_ffi.dtype(name)
