"""A real WebGPU under TVM's virtual machine: `wgpu` (wgpu-native, with naga's validation) in place
of a browser's.

TVM's runtime has WebGPU in browsers only, as functions of JavaScript's; here `devices` hands the
same few to Python, for a library whose host is this CPU. Devices are asked for no more than the
limits that every browser grants, so that a kernel beyond them is refused. On a machine without a
GPU, Mesa's lavapipe computes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import struct
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from support import devices

# What every WebGPU has; wgpu would give all that the adapter has.
LIMITS = {
    "max-storage-buffers-per-shader-stage": 8,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-storage-size": 16384,
}
FLOAT16 = "shader-f16"
# What `dispatch_workgroups` takes along one axis.
_MOST_GROUPS = 65535
# Buffers are numbers; TVM asks pointers to be aligned.
_ALIGNED = 4096
_POD = {"i": "i", "u": "I", "f": "f"}


@cache
def adapter() -> Any:
    """The adapter that computes here; None where there is none."""
    # Drivers of windows look for their display there.
    os.environ.setdefault("XDG_RUNTIME_DIR", os.environ.get("TMPDIR", "/tmp"))
    import wgpu

    found = wgpu.gpu.enumerate_adapters_sync()
    return next((one for one in found if one.info["backend_type"] == "Vulkan"), None)


@cache
def missing() -> str | None:
    """Why no WebGPU runs here; None where one does."""
    if sys.platform != "linux":
        return "WebGPU: tried on Linux only"
    if importlib.util.find_spec("wgpu") is None:
        return "WebGPU: wgpu is not installed (`pip install wgpu`, with Python 3.11 or later)"
    if shutil.which("g++") is None:
        return "WebGPU: needs g++"
    if adapter() is None:
        return "WebGPU: no Vulkan driver (Debian: mesa-vulkan-drivers and libvulkan1)"
    return None


def has_float16() -> bool:
    """Whether kernels may compute in float16 here."""
    return FLOAT16 in adapter().features


def request(*, float16: bool) -> Any:
    """A device of WebGPU with its default limits."""
    return adapter().request_device_sync(
        required_features=[FLOAT16] if float16 else [], required_limits=LIMITS
    )


@cache
def install(folder: Path) -> Device:
    """Gives TVM's runtime in this process the device `webgpu`; its library is kept in `folder`."""
    device = Device(request(float16=has_float16()))
    devices.install("webgpu", device, folder)
    return device


class Device:
    """What TVM asks of a device, by wgpu; and how many kernels were launched, by name."""

    def __init__(self, device: Any) -> None:
        import wgpu

        self.usage = wgpu.BufferUsage
        self.device = device
        self.launches: dict[str, int] = {}
        self._buffers: dict[int, Any] = {}
        self._free: list[int] = []
        self._modules: list[dict[str, devices.Shader]] = []
        self._kernels: dict[tuple[int, str], Callable[..., None]] = {}
        self._encoder: Any = None

    def allocate(self, size: int) -> int:
        """A new buffer, full of NaN."""
        usage = self.usage.STORAGE | self.usage.COPY_SRC | self.usage.COPY_DST
        size = max(4, -(-size // 4) * 4)
        buffer = self.device.create_buffer(size=size, usage=usage)
        self.device.queue.write_buffer(buffer, 0, b"\xff" * size)
        number = self._free.pop() if self._free else (len(self._buffers) + 1) * _ALIGNED
        self._buffers[number] = buffer
        return number

    def release(self, number: int) -> None:
        # Launches that wait hold it still.
        del self._buffers[number]
        self._free.append(number)

    def wait(self) -> None:
        """Begins all that was asked for."""
        if self._encoder is not None:
            self.device.queue.submit([self._encoder.finish()])
            self._encoder = None

    def write(self, source: int, number: int, offset: int, size: int) -> None:
        self.wait()
        data = ctypes.string_at(source, size)
        buffer = self._buffers[number]
        if size % 4:
            # Whole words are written; the other bytes of the last stay.
            last = self.device.queue.read_buffer(buffer, offset + size - size % 4, 4)
            data += bytes(last)[size % 4 :]
        self.device.queue.write_buffer(buffer, offset, data)

    def read(self, number: int, offset: int, target: int, size: int) -> None:
        self.wait()
        data = self.device.queue.read_buffer(self._buffers[number], offset, -(-size // 4) * 4)
        ctypes.memmove(target, bytes(data[:size]), size)

    def copy(self, source: int, from_offset: int, target: int, offset: int, size: int) -> None:
        given, taking = self._buffers[source], self._buffers[target]
        size = -(-size // 4) * 4
        self._pending().copy_buffer_to_buffer(given, from_offset, taking, offset, size)

    def load(self, data: bytes) -> int:
        """The number of a library's kernels."""
        self._modules.append(devices.Reader(bytes(data)).shaders())
        return len(self._modules) - 1

    def kernel(self, module: int, name: str) -> Callable[..., None] | None:
        """A function that launches a kernel; None where the library has none of this name."""
        if name not in self._modules[module]:
            return None
        key = (module, name)
        if key not in self._kernels:
            self._kernels[key] = self._launcher(name, self._modules[module][name])
        return self._kernels[key]

    def _pending(self) -> Any:
        self._encoder = self._encoder or self.device.create_command_encoder()
        return self._encoder

    def _launcher(self, name: str, shader: devices.Shader) -> Callable[..., None]:
        buffers = [n for n, kind in enumerate(shader.arguments) if kind == "buffer"]
        values = [n for n, kind in enumerate(shader.arguments) if kind != "buffer"]
        packing = struct.Struct("<" + "".join(_POD[shader.arguments[n]] for n in values) + "I")
        kinds = ["storage" if written else "read-only-storage" for written in shader.written]
        assert len(kinds) == len(buffers), name
        entries = [
            {"binding": n, "visibility": 4, "buffer": {"type": kind}}
            for n, kind in enumerate([*kinds, "uniform"])
        ]
        layout = self.device.create_bind_group_layout(entries=entries)
        pipeline = self.device.create_compute_pipeline(
            layout=self.device.create_pipeline_layout(bind_group_layouts=[layout]),
            compute={
                "module": self.device.create_shader_module(code=shader.source, label=name),
                "entry_point": name,
            },
        )

        def launch(*args: Any) -> None:
            self.launches[name] = self.launches.get(name, 0) + 1
            grid = dict(zip(shader.places, args[len(shader.arguments) :], strict=True))
            assert grid.get("blockIdx.z", 1) == 1, f"{name}: kernels get z from TVM"
            wide, deep = int(grid.get("blockIdx.x", 1)), 1
            whole = wide
            while wide > _MOST_GROUPS:
                wide, deep = -(-wide // 2), 2 * deep
            packed = packing.pack(*(args[n] for n in values), whole)
            uniform = self.device.create_buffer_with_data(data=packed, usage=self.usage.UNIFORM)
            bound = [self._buffers[devices.number(args[n])] for n in buffers] + [uniform]
            group = self.device.create_bind_group(
                layout=layout,
                entries=[
                    {"binding": n, "resource": {"buffer": one, "offset": 0, "size": one.size}}
                    for n, one in enumerate(bound)
                ],
            )
            run = self._pending().begin_compute_pass()
            run.set_pipeline(pipeline)
            run.set_bind_group(0, group)
            run.dispatch_workgroups(wide, int(grid.get("blockIdx.y", 1)), deep)
            run.end()

        return launch
