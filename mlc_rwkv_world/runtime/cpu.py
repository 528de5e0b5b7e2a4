"""Which instruction sets this machine's CPU has, in LLVM's names."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# LLVM's name for each instruction set that compiled kernels use, and the kernel's name for it
# in /proc/cpuinfo. What is in no table is taken to be there: a guess must not refuse a model.
_X86 = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "avx": "avx",
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "f16c": "f16c",
    "fma": "fma",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "lzcnt": "abm",
    "movbe": "movbe",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
}
_AARCH64 = {
    "neon": "asimd",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}
_CPUINFO = Path("/proc/cpuinfo")


def missing_features(features: Iterable[str]) -> list[str]:
    """Those of the LLVM `features` that this machine is known to lack."""
    table = _X86 if platform.machine().lower() in ("x86_64", "amd64", "i686") else _AARCH64
    flags = _flags()
    if not flags:
        return []
    return [name for name in features if name in table and table[name] not in flags]


@cache
def _flags() -> frozenset[str]:
    """The CPU's flags in the words of /proc/cpuinfo; empty where the system does not say."""
    if platform.system() == "Darwin" and platform.machine() == "x86_64":
        return _darwin_flags()
    try:
        text = _CPUINFO.read_text(errors="replace")
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def _darwin_flags() -> frozenset[str]:
    keys = ["machdep.cpu.features", "machdep.cpu.leaf7_features", "machdep.cpu.extfeatures"]
    command = ["/usr/sbin/sysctl", "-n", *keys]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    names = text.lower().split()
    darwin = {"sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "avx1.0": "avx"}
    darwin |= {"lzcnt": "abm"}
    return frozenset(darwin.get(name, name) for name in names)
