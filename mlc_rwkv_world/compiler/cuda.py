"""Compiling CUDA kernels, on machines without a GPU too.

TVM compiles its CUDA source once its CUDA runtime is loaded, which needs the driver's library.
Where that is not installed TVM stores the source, and every process that loads the model has to
compile it. So a stand-in for the driver is loaded there, a library of its name and with the
functions that TVM's runtime asks for, each of which reports that there is no device.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import tvm
import tvm_ffi
from tvm.target import Target

from mlc_rwkv_world.errors import TargetError

_DRIVER = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


# NVRTC, which TVM would rather use, needs the package cuda-bindings. The approximations of
# --use_fast_math cost digits and save no time where memory is the limit.
_WITH_NVCC = {"TVM_CUDA_COMPILE_MODE": "nvcc", "TVM_CUDA_NVCC_NO_FAST_MATH": "1"}


@contextmanager
def compiling(target: Target) -> Iterator[None]:
    """While the block runs, TVM compiles CUDA kernels for `target` where nvcc is at hand.

    Raises TargetError where TVM would need it and it is not there.
    """
    added = {}
    if shutil.which("nvcc") is not None:
        added = {name: value for name, value in _WITH_NVCC.items() if name not in os.environ}
        if not compiles():
            _load_runtime()
    elif compiles() and find_spec("cuda") is None:
        raise TargetError(
            "building for CUDA needs its compiler, and nvcc is not on the PATH; install NVIDIA's "
            "CUDA toolkit, or the Python package cuda-bindings."
        )
    os.environ.update(added)
    try:
        with target:
            yield
    finally:
        for name in added:
            del os.environ[name]


def compiles() -> bool:
    """Whether TVM stores compiled kernels, and not their source."""
    return tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None


def _load_runtime() -> None:
    """Loads TVM's CUDA runtime with the stand-in; does nothing where it cannot be done."""
    runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None or not runtime.is_file():
        return
    names = set(re.findall(rb"(?<=\0)cu[A-Z]\w+(?=\0)", runtime.read_bytes()))
    source = "".join(f"int {name.decode()}(void) {{ return {_NO_DEVICE}; }}\n" for name in names)
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / _DRIVER)
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library]
        made = subprocess.run(
            [*command, f"-Wl,-soname,{_DRIVER}"], input=source, text=True, capture_output=True
        )
        if made.returncode == 0:
            try:
                ctypes.CDLL(library)
                ctypes.CDLL(str(runtime))
            except OSError:
                return
