"""Where TVM 0.26 and 0.27 do not fit tvm-ffi 0.1.15, which another package may bring.

They die of a segmentation fault when a module is written as JSON, at its first type, and when a
schedule is tensorized, which only kernels for Metal are. docs/building.md says what was tried.
"""

from __future__ import annotations

import re

import tvm_ffi

_UNFIT = [0, 1, 15]


def fits() -> bool:
    """Whether the tvm-ffi that is installed is older than that."""
    numbers = re.findall(r"\d+", str(tvm_ffi.__version__))
    return [int(number) for number in numbers[:3]] < _UNFIT
