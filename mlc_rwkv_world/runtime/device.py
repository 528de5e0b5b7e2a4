"""Names of devices: "auto", or a kind that TVM knows with an optional index ("cuda:1")."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import tvm_ffi

from mlc_rwkv_world.errors import TargetError, UsageError
from mlc_rwkv_world.runtime import tvm_runtime

KINDS = ("cuda", "metal", "rocm", "vulkan", "opencl", "webgpu", "cpu")


def open_device(name: str, available: Iterable[str]) -> Any:
    """The TVM device called `name`; "auto" is the fastest kind here among `available`.

    `available` are the kinds that the artifact has a library for. Raises UsageError for a
    name that is none, TargetError for a device that this machine lacks.
    """
    _load_device_runtimes()
    if name == "auto":
        kinds = [kind for kind in KINDS if kind in set(available)]
        for kind in kinds:
            if tvm_runtime.exists(tvm_ffi.device(kind, 0)):
                return tvm_ffi.device(kind, 0)
        raise TargetError(
            f"The model was built for {' and '.join(kinds) or 'no device'}, which this machine "
            "lacks. Build it for this machine, or name a library."
        )
    match = re.fullmatch(rf"({'|'.join(KINDS)})(?::(\d{{1,4}}))?", name, re.ASCII)
    if match is None:
        raise UsageError(
            f"{name!r} is no device. Give auto, {', '.join(KINDS)}, or one with an index (cuda:0)."
        )
    number = int(match[2] or 0)
    device = tvm_ffi.device(match[1], number)
    if match[1] == "cpu" and number:
        raise TargetError(
            f"There is no device {name}: all processors are one device, cpu. --threads says how "
            "many of them to use."
        )
    if not tvm_runtime.exists(device):
        raise TargetError(f"There is no device {name} on this machine.")
    return device


@cache
def _load_device_runtimes() -> None:
    """TVM has a library for each kind of device, and loads them only beside its compiler."""
    folder = Path(tvm_runtime.library()._name).resolve().parent
    for path in sorted(folder.glob("libtvm_runtime_*")):
        # A machine without the device lacks the driver that its library needs.
        with suppress(OSError):
            ctypes.CDLL(str(path))


def release_unused() -> None:
    """Give back the memory of tensors that are gone: TVM and the C library keep it for others."""
    tvm_runtime.function("vm.builtin.memory_manager.clear")()
    # Only glibc has it, and only glibc keeps as much as a model.
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def kind_of(device: Any) -> str:
    """The kind of a TVM device: "cpu", "cuda", ..."""
    return "cpu" if device.dlpack_device_type() == 1 else str(device).split(":")[0]
