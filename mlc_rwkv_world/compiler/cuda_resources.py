"""What NVIDIA's assembler says that each kernel of some CUDA source needs."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path

from mlc_rwkv_world.errors import TargetError

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_BOUNDS = re.compile(r"__launch_bounds__\((\d+)[^)]*\) (\w+)\(")


@dataclasses.dataclass(frozen=True)
class Resources:
    """One kernel's registers a thread, threads, static shared memory, and bytes of local memory.

    `stack` and `spilled` are 0 where everything that a thread has is in registers.
    """

    kernel: str
    registers: int
    threads: int
    shared: int
    stack: int
    spilled: int


def resources(source: str, arch: str) -> list[Resources]:
    """The kernels of a CUDA source, assembled by nvcc for `arch`, such as sm_90.

    Raises TargetError where there is no nvcc, or it refuses the source.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cu"
        path.write_text(source)
        command = ["nvcc", "-cubin", f"-arch={arch}", "-O3", "-Xptxas", "-v"]
        try:
            done = subprocess.run(
                [*command, "-o", f"{path}.cubin", str(path)], capture_output=True, text=True
            )
        except OSError as err:
            raise TargetError(f"nvcc cannot be run: {err}") from err
    if done.returncode:
        raise TargetError(f"nvcc refused kernels for {arch}: {done.stderr.strip()[-2000:]}")
    threads = {name: int(bound) for bound, name in _BOUNDS.findall(source)}
    found = []
    for part in re.split(r"(?=ptxas info\s*: Compiling entry)", done.stderr)[1:]:
        entry, used = _ENTRY.search(part), _USED.search(part)
        spills, shared = _SPILLS.search(part), _SHARED.search(part)
        if entry and used:
            stack, stored, loaded = map(int, spills.groups()) if spills else (0, 0, 0)
            found.append(
                Resources(
                    entry[1],
                    int(used[1]),
                    threads.get(entry[1], 0),
                    int(shared[1]) if shared else 0,
                    stack,
                    stored + loaded,
                )
            )
    return sorted(found, key=lambda one: one.kernel)
