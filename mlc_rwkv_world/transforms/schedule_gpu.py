"""GPU schedules: ours for products on Metal; dlight's for others, reductions and what is left."""

from __future__ import annotations

import inspect

from tvm.s_tir import dlight
from tvm.s_tir.dlight.base import ScheduleRule

from mlc_rwkv_world.transforms.matmul_metal import MatmulMetal


def rules() -> list[ScheduleRule]:
    """In the order in which a kernel is offered to them."""
    _import_intrinsics()
    return [
        MatmulMetal(),
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    ]


def _import_intrinsics() -> None:
    """Imports TVM's tensor intrinsics, which `Matmul` asks for, in seconds instead of minutes.

    They are hundreds of TVMScript functions, and parsing one asks `inspect` several times for the
    module of each frame on the stack. For a frame without a file, as importing leaves many,
    it looks through all modules, every time, unless it is told.
    """
    frame = inspect.currentframe()
    while frame is not None:
        _remember(frame.f_code.co_filename, frame.f_globals.get("__name__"))
        frame = frame.f_back
    for module in ("importlib._bootstrap", "importlib._bootstrap_external"):
        _remember(f"<frozen {module}>", module)
    for file in ("<ast>", "<string>"):
        _remember(file, __name__)
    import tvm.s_tir.tensor_intrin  # noqa: F401


def _remember(file: str, module: str | None) -> None:
    if file.startswith("<") and module is not None:
        inspect.modulesbyfile.setdefault(file, module)
