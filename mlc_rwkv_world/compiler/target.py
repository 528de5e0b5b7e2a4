"""What `--target` says: the device to build for, and the host that drives it."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import shlex
from collections.abc import Iterable
from typing import Any

import tvm
import tvm_ffi
from tvm.target import Target, codegen

from mlc_rwkv_world.compiler import ffi
from mlc_rwkv_world.errors import TargetError

_LONGEST = 1000
KINDS = ("llvm", "cuda", "metal", "opencl", "vulkan", "webgpu")
# Limits that TVM would read from a device that is not there.
_CUDA_LIMITS = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152}
_CUDA_DEFAULT_ARCH = "sm_80"
# The first with float16 arithmetic.
_CUDA_OLDEST_ARCH = 53
_METAL_LIMITS = {"max_threads_per_block": 256, "max_shared_memory_per_block": 32768}
# What every WebGPU has, https://www.w3.org/TR/webgpu/#limits; TVM's own default is more memory.
_WEBGPU_LIMITS = {"max_num_threads": 256, "max_shared_memory_per_block": 16384}

# What generated code is made of; features that only systems or ciphers use do not matter.
_INSTRUCTION_SETS = (
    *("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx"),
    *("neon", "dotprod", "fullfp16", "bf16", "i8mm", "sve"),
)


@dataclasses.dataclass(frozen=True)
class BuildTarget:
    """A TVM target with its host, and what was assumed in choosing it."""

    target: Target
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return str(self.target.kind.name)

    @property
    def host(self) -> Target:
        """The CPU that runs the host's side: the target itself where that is a CPU."""
        return self.target if self.kind == "llvm" else self.target.host

    def cpu_features(self) -> list[str]:
        """LLVM's names of the instruction sets that the CPU's code may use."""
        return sorted(
            str(name)
            for name in codegen.llvm_get_cpu_features(self.host)
            if str(name).startswith(_INSTRUCTION_SETS)
        )

    def without(self, features: Iterable[str]) -> BuildTarget:
        """The same target, for a CPU that lacks these instruction sets."""
        attrs = json.loads(str(self.target))
        cpu = attrs if self.kind == "llvm" else attrs["host"]
        cpu["mattr"] = [*cpu.get("mattr", ()), *(f"-{name}" for name in features)]
        return dataclasses.replace(self, target=Target(attrs))

    def describe(self) -> str:
        """The target as JSON, which `resolve` reads back."""
        return json.dumps(json.loads(str(self.target)), sort_keys=True)


# LLVM makes one instruction of a product and a sum of float16 where a CPU has it, and rounds once.
# Elsewhere each is computed in float32 and rounded, as the model says.
_FLOAT16_ARITHMETIC = "avx512fp16"


def host() -> dict[str, Any]:
    """This machine's CPU as an LLVM target."""
    attrs: dict[str, Any] = {"kind": "llvm", "mtriple": _host_triple()}
    cpu = str(codegen.llvm_get_system_cpu())
    if cpu and cpu != "generic":
        attrs["mcpu"] = cpu
    return attrs


def _host_triple() -> str:
    # LLVM reports the triple that it was packaged for; vendor and libc do not matter to code.
    return re.sub(r"-(conda|unknown|pc)-", "-", str(codegen.llvm_get_system_triple()))


def resolve(text: str) -> BuildTarget:
    """`auto`, a kind (`llvm`, ...), `kind -key=value ...`, a tag of TVM's, or a JSON object.

    Raises TargetError where that names no target, or none that can be built for here.
    """
    text = text.strip()
    # JSON may spell what no string of TVM's can hold, and so may a command line.
    if not text.isprintable() or re.search(r"\\u(d[89a-f]|00[01])", text, re.IGNORECASE):
        raise TargetError(f"--target {text[:60]!r} is not plain text.")
    if len(text) > _LONGEST:
        raise TargetError(f"--target has {len(text)} characters, more than any target needs.")
    if text == "auto":
        text = _detect()
    attrs = _parse(text)
    kind = attrs.get("kind")
    if kind not in KINDS:
        raise TargetError(
            f"--target {text!r}: {kind!r} is not a target of this package; use auto, "
            f"{', '.join(KINDS)}, or a full TVM target of one of these kinds."
        )
    _require_backend(str(kind), text)
    notes: list[str] = []
    attrs = _COMPLETE.get(str(kind), _other)(attrs, notes)
    _require_known_cpu(attrs if kind == "llvm" else attrs.get("host"), text)
    _require_known_gpu(str(attrs.get("arch", "")), text)
    target = BuildTarget(_accepted(attrs, text), tuple(notes))
    fused = kind == "llvm" and _FLOAT16_ARITHMETIC in target.cpu_features()
    return target.without([_FLOAT16_ARITHMETIC]) if fused else target


def _accepted(target: str | dict[str, Any], text: str) -> Target:
    try:
        return Target(target)
    except Exception as err:
        reason = str(err).strip().splitlines()[0][:200]
        raise TargetError(f"--target {text!r}: TVM does not accept it: {reason}") from err


def _require_known_cpu(cpu: Any, text: str) -> None:
    if not isinstance(cpu, dict) or cpu.get("kind") != "llvm":
        raise TargetError(f"--target {text!r}: the host has to be a CPU, a target of kind llvm.")
    # LLVM would take what it does not know for a generic CPU, or crash.
    name, triple = cpu.get("mcpu") or "generic", cpu["mtriple"]
    if not codegen.llvm_is_valid_cpu(str(name), str(triple)):
        raise TargetError(f"--target {text!r}: LLVM knows no CPU {name!r} of {triple!r}.")


def _require_known_gpu(arch: str, text: str) -> None:
    # nvcc would say so after a model has been compiled.
    found = re.fullmatch(r"sm_(\d+)[af]?", arch)
    if found is not None and int(found[1]) < _CUDA_OLDEST_ARCH:
        raise TargetError(
            f"--target {text!r}: models are built for sm_{_CUDA_OLDEST_ARCH} and later, such as "
            "-arch=sm_80."
        )


def _detect() -> str:
    if platform.system() == "Darwin" and tvm.metal(0).exist:
        return "metal"
    return "cuda" if tvm.cuda(0).exist else "llvm"


def _parse(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        try:
            attrs = json.loads(text)
        except json.JSONDecodeError as err:
            raise TargetError(f"--target {text!r} is not valid JSON: {err}.") from err
        if not isinstance(attrs, dict):
            raise TargetError(f"--target {text!r} has to be a JSON object.")
        return attrs
    try:
        kind, *options = shlex.split(text) or [""]
    except ValueError as err:
        raise TargetError(f"--target {text!r} cannot be read: {err}.") from err
    # Tags, such as nvidia/nvidia-a100, are TVM's names for whole targets.
    attrs = json.loads(str(_accepted(kind, text))) if "/" in kind else {"kind": kind}
    for option in options:
        match = re.fullmatch(r"--?([A-Za-z_][\w-]*)=(.+)", option)
        if match is None:
            raise TargetError(f"--target {text!r}: {option!r} is not of the form -key=value.")
        key, value = match[1], match[2]
        if key in ("mattr", "keys", "libs"):
            attrs[key] = value.split(",")
        elif key == "host":
            attrs[key] = _parse(value)
        else:
            attrs[key] = int(value) if re.fullmatch(r"\d+", value) else value
    return attrs


def _require_backend(kind: str, text: str) -> None:
    if kind == "llvm":
        return
    if tvm.get_global_func(f"target.build.{kind}", allow_missing=True) is None:
        raise TargetError(
            f"--target {text!r}: the TVM that is installed ({tvm.__version__}) was built without "
            f"{kind}. Install a TVM with it, or choose another target."
        )
    if kind == "metal" and not ffi.fits():
        raise TargetError(
            f"--target {text!r}: with tvm-ffi {tvm_ffi.__version__} TVM dies while it compiles for "
            "Metal. Run: pip install 'apache-tvm-ffi<0.1.15'"
        )


def _llvm(attrs: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    if set(attrs) == {"kind"}:
        return host()
    attrs.setdefault("mtriple", _host_triple())
    return attrs


def _with_host(attrs: dict[str, Any], default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Completes the host, or takes the default one."""
    if attrs.get("host") is None:
        attrs["host"] = default or host()
    elif isinstance(attrs["host"], str):
        attrs["host"] = _parse(attrs["host"])
    if isinstance(attrs["host"], dict) and attrs["host"].get("kind") == "llvm":
        attrs["host"] = _llvm(attrs["host"], [])
    return attrs


def _cuda(attrs: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    if "arch" not in attrs:
        if tvm.cuda(0).exist:
            attrs["arch"] = "sm_" + str(tvm.cuda(0).compute_version).replace(".", "")
        else:
            attrs["arch"] = _CUDA_DEFAULT_ARCH
            notes.append(
                f"no CUDA device here: built for {_CUDA_DEFAULT_ARCH}; "
                "--target 'cuda -arch=sm_90' chooses another"
            )
    for key, value in {**_CUDA_LIMITS, "thread_warp_size": 32}.items():
        attrs.setdefault(key, value)
    return _with_host(attrs)


def _metal(attrs: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    for key, value in {**_METAL_LIMITS, "thread_warp_size": 32}.items():
        attrs.setdefault(key, value)
    if platform.system() == "Darwin":
        return _with_host(attrs)
    return _with_host(attrs, {"kind": "llvm", "mtriple": "arm64-apple-macos"})


def _webgpu(attrs: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    for key, value in _WEBGPU_LIMITS.items():
        attrs.setdefault(key, value)
    # As mlc_llm names what browsers run.
    return _with_host(attrs, {"kind": "llvm", "mtriple": "wasm32-unknown-unknown-wasm"})


def _other(attrs: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    return _with_host(attrs)


_COMPLETE = {"llvm": _llvm, "cuda": _cuda, "metal": _metal, "webgpu": _webgpu}
