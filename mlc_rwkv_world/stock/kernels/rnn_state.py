"""How TVM's RNNState copies a row of B sequences out of its storage [slots, history, width] and in.

All float32; slots and places are int32 [B].
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T


def getter(width: int, row: int) -> tirx.PrimFunc:
    """(storage, slot and place in the history of each sequence) -> [B, width]."""

    @T.prim_func(s_tir=True)
    def get(
        var_storage: T.handle, var_slots: T.handle, var_history: T.handle, var_output: T.handle
    ) -> None:
        T.func_attr({"global_symbol": f"rnn_state_get_{row}", "tirx.noalias": True})
        slots, history, batch = T.int64(), T.int64(), T.int64()
        storage = T.match_buffer(var_storage, (slots, history, width), "float32")
        slot_ids = T.match_buffer(var_slots, (batch,), "int32")
        history_ids = T.match_buffer(var_history, (batch,), "int32")
        output = T.match_buffer(var_output, (batch, width), "float32")
        for b, d in T.grid(batch, T.int64(width)):
            with T.sblock("get"):
                vb, vd = T.axis.remap("SS", [b, d])
                output[vb, vd] = storage[
                    T.cast(slot_ids[vb], "int64"), T.cast(history_ids[vb], "int64"), vd
                ]

    return get


def setter(width: int, row: int) -> tirx.PrimFunc:
    """(storage, slot and place in the history of each sequence, value [B, width]).

    The value goes to the next place, after the last one to the first.
    """

    @T.prim_func(s_tir=True)
    def set_(
        var_storage: T.handle, var_slots: T.handle, var_history: T.handle, var_value: T.handle
    ) -> None:
        T.func_attr({"global_symbol": f"rnn_state_set_{row}", "tirx.noalias": True})
        slots, history, batch = T.int64(), T.int64(), T.int64()
        storage = T.match_buffer(var_storage, (slots, history, width), "float32")
        slot_ids = T.match_buffer(var_slots, (batch,), "int32")
        history_ids = T.match_buffer(var_history, (batch,), "int32")
        value = T.match_buffer(var_value, (batch, width), "float32")
        for b, d in T.grid(batch, T.int64(width)):
            with T.sblock("set"):
                vb, vd = T.axis.remap("SS", [b, d])
                storage[
                    T.cast(slot_ids[vb], "int64"),
                    (T.cast(history_ids[vb], "int64") + T.int64(1)) % history,
                    vd,
                ] = value[vb, vd]

    return set_
