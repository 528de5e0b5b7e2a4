"""A CPU schedule for what fusion leaves: elementwise kernels and row gathers."""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.dlight.base import ScheduleRule, try_inline
from tvm.target import Target

_LANES = 16
# Below this many elements, waking threads costs more than it saves.
_PARALLEL_FROM = 1 << 15


class Elementwise(ScheduleRule):  # type: ignore[misc]
    """Inlines producers, runs vectors along the last axis, and rows in parallel where it pays."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> s_tir.Schedule | None:
        if target.kind.name != "llvm":
            return None
        sch = s_tir.Schedule(func)
        infos = normalize_prim_func(sch)
        if not infos:
            return None
        infos = try_inline(sch, infos)
        if len(infos) != 1 or not infos[0].is_injective():
            return None
        loops = sch.get_loops(infos[0].block_rv)
        if not loops:
            return None
        extents = [sch.get(loop).extent for loop in loops]
        static = [int(e) if isinstance(e, tirx.IntImm) else None for e in extents]
        *rows, last = loops
        if static[-1] is not None and static[-1] % _LANES == 0:
            _, lanes = sch.split(last, [None, _LANES])
            sch.vectorize(lanes)
        total = 1
        for extent in static:
            total = total * extent if extent is not None else _PARALLEL_FROM
        if rows and total >= _PARALLEL_FROM and static[0] != 1:
            sch.parallel(sch.fuse(*rows))
        return sch
