"""The passes between an exported model and the machine's code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir.transform import Pass
from tvm.s_tir import dlight
from tvm.target import Target

from mlc_rwkv_world.artifact.abi import OURS
from mlc_rwkv_world.artifact.output import Kind, Output
from mlc_rwkv_world.artifact.storage import storing
from mlc_rwkv_world.compiler.additions import Additions
from mlc_rwkv_world.compiler.arithmetic import by_function
from mlc_rwkv_world.compiler.metadata import attach
from mlc_rwkv_world.compiler.passes import schedule_gpu
from mlc_rwkv_world.compiler.passes.attach_symbols import AttachSymbols
from mlc_rwkv_world.compiler.passes.capture_decode import CaptureDecode
from mlc_rwkv_world.compiler.passes.choose_kernels import ChooseKernels
from mlc_rwkv_world.compiler.passes.fp32_layers import FP32Layers
from mlc_rwkv_world.compiler.passes.order_shapes import OrderShapes
from mlc_rwkv_world.compiler.passes.pack_weights import PackWeights
from mlc_rwkv_world.compiler.passes.schedule_cpu import Elementwise
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.tvm_names import name_of
from mlc_rwkv_world.tvm_script import quick_parsing
from mlc_rwkv_world.versions.table import version_of

PHASES = ("precision", "weights", "kernels", "fusion", "schedules", "machine")
_SCRIPT = Kind("module of --debug-dump", re.compile(rb"(# from .*\n)*# from tvm\.script import "))


@quick_parsing()
def run(
    mod: IRModule,
    target: Target,
    config: ModelConfig,
    metadata: dict[str, Any],
    dump: Path | None,
    starting: Callable[[str], None] = lambda phase: None,
    additions: Additions | None = None,
) -> IRModule:
    """Lowers an exported module to TIR kernels and calls of the virtual machine.

    With `dump`, the module after each phase is written to that folder as TVMScript. `starting`
    hears of each of PHASES when it begins. `additions` are those that the module was exported with.
    """
    if dump is not None:
        prepare_dump(dump)
    names = [param["name"] for param in metadata.get("params", ())]
    arithmetic = by_function(metadata.get("rwkv_world", {}).get("arithmetic", {}))
    exact = config.fp32_layers or ()
    version = version_of(config.model_version)
    operations = {} if additions is None else additions.operations
    on_cpu = target.kind.name == "llvm"
    phases: dict[str, list[Pass]] = {
        "precision": [FP32Layers(exact)],
        "weights": [PackWeights(target, names, arithmetic, exact)] if on_cpu else [],
        "kernels": [
            ChooseKernels(
                target,
                version.all_parts(),
                {**version.all_operations(), **operations},
                version.all_rules(target.kind.name),
            ),
            CaptureDecode(target),
        ],
        "fusion": [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ],
        "schedules": [_schedules(target)],
        "machine": [
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            _AttachMetadata(metadata),
            *_graphs(target),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            OrderShapes(),
            AttachSymbols(),
        ],
    }
    first = [] if additions is None else list(additions.passes(target, config))
    with target:
        mod = _bound_shapes(tvm.transform.Sequential(first)(mod), config)
    # Without it the pass does nothing.
    options = {"relax.backend.use_cuda_graph": target.kind.name == "cuda"}
    with target, tvm.transform.PassContext(config=options):
        _write(mod, dump, "0-export")
        for number, name in enumerate(PHASES, start=1):
            starting(name)
            mod = tvm.transform.Sequential(phases[name])(mod)
            _write(mod, dump, f"{number}-{name}")
    return mod


@tvm.transform.module_pass(opt_level=0, name="AttachMetadata")
class _AttachMetadata:
    """Runs once memory is planned, since the metadata says how much there is."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        return attach(mod, self.metadata)


def _graphs(target: Target) -> list[Pass]:
    """What is static becomes CUDA graphs, which are captured when a function first runs."""
    return [relax.transform.RewriteCUDAGraph()] if target.kind.name == "cuda" else []


def _schedules(target: Target) -> Pass:
    if target.kind.name == "llvm":
        return dlight.ApplyDefaultSchedule(Elementwise())
    return dlight.ApplyDefaultSchedule(*schedule_gpu.rules())


def _bound_shapes(mod: IRModule, config: ModelConfig) -> IRModule:
    """Tells memory planning how long and how many sequences can be.

    A host's functions read prompts of any length in one call, and allocate as they go.
    """
    sequences = {
        "batch_size": config.max_batch_size,
        "num_offsets": config.max_batch_size + 1,
    }
    mod = mod.clone()
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            ours = name_of(gvar).startswith(OURS)
            bounds = sequences | ({"seq_len": config.prefill_chunk_size} if ours else {})
            func = func.with_attr("tir_var_upper_bound", bounds)
            mod[gvar] = func.with_attr("relax.memory_plan_dynamic_func_output", True)
    return mod


def prepare_dump(dump: Path) -> None:
    """Make the folder for what `run` writes; UsageError where files of others are in the way."""
    with storing(dump):
        if dump.is_symlink():
            raise UsageError(f"{dump} is a link. Remove it, or give another folder.")
        dump.mkdir(parents=True, exist_ok=True)
        for path in [*sorted(dump.glob("[0-9]-*.py")), dump / "0-export.py"]:
            Output(path, _SCRIPT).check()


def _write(mod: IRModule, dump: Path | None, name: str) -> None:
    if dump is not None:
        Output(dump / f"{name}.py", _SCRIPT).write(mod.script().encode())
