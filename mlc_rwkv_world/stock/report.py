"""What there is of TVM, of mlc_llm and of our registration, told for a user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import Distribution, distributions, entry_points
from pathlib import Path
from types import ModuleType

from mlc_rwkv_world import __version__
from mlc_rwkv_world.stock import PACKAGE, defects, steps
from mlc_rwkv_world.stock.autoload import DISABLE_VARIABLE, arm, armed, disabled
from mlc_rwkv_world.stock.host import KNOWN_VERSIONS, Host, find_host, our_portion

GROUPS = ("tvm.backends", "mlc_llm.models")


def report() -> Iterator[str]:
    """One line after another. Imports TVM and, where there is one, mlc_llm."""
    yield f"mlc-rwkv-world {__version__}, {Path(__file__).parents[1]}"
    yield f"Python {sys.version.split()[0]}, {sys.executable}"
    yield from _tvm()
    yield from _entry_points()
    yield f"python -m {PACKAGE}.build: {our_portion() or 'its file is missing'}"
    if disabled():
        yield f"plugin: turned off by {DISABLE_VARIABLE}"
        return
    yield f"plugin: {'armed by import tvm' if armed() else 'not armed'}"
    host = find_host()
    if host is None:
        yield f"{PACKAGE}: not installed; building and chatting need none"
        return
    yield from _host(host)


def _tvm() -> Iterator[str]:
    try:
        tvm = import_module("tvm")
    except Exception as error:
        yield f"TVM: cannot be imported ({type(error).__name__}: {error})"
        return
    kind = "runtime only" if getattr(tvm, "_RUNTIME_ONLY", False) else "compiler and runtime"
    owner = _owner(tvm)
    of = f"of {owner.metadata['Name']} {owner.version}" if owner else "of no distribution"
    yield f"TVM {tvm.__version__}, {kind}, {of}, {Path(str(tvm.__file__)).parent}"
    ffi = import_module("tvm_ffi")
    yield f"tvm-ffi {getattr(ffi, '__version__', 'of unknown version')}"


def _owner(module: ModuleType) -> Distribution | None:
    """The distribution that installed the package."""
    path = Path(str(module.__file__)).resolve()
    entry = "/".join(path.parts[-2:])
    for distribution in distributions(path=[str(path.parents[1])]):
        record = distribution.read_text("RECORD") or ""
        if any(line.startswith(f"{entry},") for line in record.splitlines()):
            return distribution
    return None


def _entry_points() -> Iterator[str]:
    for group in GROUPS:
        ours = [point.value for point in entry_points(group=group) if "rwkv_world" in point.value]
        yield f"entry point {group}: {ours[0] if ours else 'missing; install the package'}"


def _host(host: Host) -> Iterator[str]:
    tested = "" if host.tested else f" (tested: {', '.join(KNOWN_VERSIONS)})"
    yield f"{PACKAGE} {host.version or 'without a version'}{tested}, {host.folder}"
    # What a user asks for by running this; else the plugin waits for TVM's entry point.
    arm()
    for step in steps.STEPS:
        try:
            import_module(f"{PACKAGE}.{step.module}")
        except Exception as error:
            yield f"  {step.what}: {PACKAGE}.{step.module} cannot be imported ({_first(error)})"
        else:
            yield f"  {step.what}: {steps.outcomes[step]}"
    yield "known defects of the host that reach RWKV World:"
    for defect in defects.DEFECTS:
        state = defect.answer if defect.present_in(host.version) else "fixed in this version"
        yield f"  {defect.symptom}: {state}"


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
