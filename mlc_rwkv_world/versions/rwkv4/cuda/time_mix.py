"""The middle of a time mix on CUDA: three products of one row, the recurrence and the gate."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cuda.dot import Streamed
from mlc_rwkv_world.kernels.cuda.matvec import Rows, types_of
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.versions.rwkv4.wkv import accumulate, output


def time_mix_step(sig: Signature) -> tirx.PrimFunc:
    """(xk, xv, xr, 3 weights and scales, time_decay, time_first, state, slots, layer) -> gated.

    That is sigmoid(r) * wkv. Rows 1, 2, 3 of the state's layer, the recurrence's a, b and p, are
    replaced by the new ones.
    """
    one = Streamed.of(sig.args[0], sig.args[3], sig.stored[0])
    plan = Rows([one] * 3, sig.args[0].dtype, 1)
    y_type = sig.outs[0].dtype
    (x_shape, x_type), (w_shape, w_type), (s_shape, s_type) = types_of(sig)[0], *types_of(sig)[3:5]
    layers, state_rows, width = (sig.args[-2].static(axis) for axis in (1, 2, 3))
    outer = plan.outer

    @T.prim_func(s_tir=True)
    def kernel(
        xk: T.Buffer(x_shape, x_type),
        xv: T.Buffer(x_shape, x_type),
        xr: T.Buffer(x_shape, x_type),
        wk: T.Buffer(w_shape, w_type),
        sk: T.Buffer(s_shape, s_type),
        wv: T.Buffer(w_shape, w_type),
        sv: T.Buffer(s_shape, s_type),
        wr: T.Buffer(w_shape, w_type),
        sr: T.Buffer(s_shape, s_type),
        decay: T.Buffer((width,), "float32"),
        first: T.Buffer((width,), "float32"),
        var_state: T.handle,
        slots: T.Buffer((1, 2), "int32"),
        layer: T.int64,
        y: T.Buffer((1, outer), y_type),
    ) -> None:
        places = T.int64()
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")

        @T.inline
        def store(total, row):  # type: ignore[no-untyped-def]
            old = T.alloc_buffer((4,), "float32", scope="local")
            old[0] = state[read_slot(slots, 0), layer, 1, row]
            old[1] = state[read_slot(slots, 0), layer, 2, row]
            old[2] = state[read_slot(slots, 0), layer, 3, row]
            old[3] = old[2] - T.exp(decay[row])
            y[0, row] = T.cast(
                T.sigmoid(total[2])
                * output(old[0], old[1], old[2], first[row] + total[0], total[1]),
                y_type,
            )
            state[write_slot(slots, 0), layer, 1, row] = accumulate(
                old[0], old[3], total[0], total[1]
            )
            state[write_slot(slots, 0), layer, 2, row] = accumulate(
                old[1], old[3], total[0], T.float32(1)
            )
            state[write_slot(slots, 0), layer, 3, row] = T.max(old[3], total[0])

        plan.run(store)((xk, xv, xr), (wk, wv, wr), (sk, sv, sr))

    return kernel
