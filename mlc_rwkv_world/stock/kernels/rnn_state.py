"""How TVM's RNNState copies a field of B sequences out of its storage [slots, history, ...] and in.

All float32, a field being a row or several; slots and places are int32 [B].
"""

from __future__ import annotations

from math import prod

from tvm import tirx
from tvm.script import tirx as T


def getter(shape: tuple[int, ...], number: int) -> tirx.PrimFunc:
    """(storage, slot and place in the history of each sequence) -> [B, *shape]."""
    height, width, single = prod(shape[:-1]), shape[-1], len(shape) == 1

    @T.prim_func(s_tir=True)
    def get(
        var_storage: T.handle, var_slots: T.handle, var_history: T.handle, var_output: T.handle
    ) -> None:
        T.func_attr({"global_symbol": f"rnn_state_get_{number}", "tirx.noalias": True})
        slots, history, batch = T.int64(), T.int64(), T.int64()
        storage = T.match_buffer(var_storage, (slots, history, *shape), "float32")
        slot_ids = T.match_buffer(var_slots, (batch,), "int32")
        history_ids = T.match_buffer(var_history, (batch,), "int32")
        output = T.match_buffer(var_output, (batch, *shape), "float32")
        for b, n, d in T.grid(batch, T.int64(height), T.int64(width)):
            with T.sblock("get"):
                vb, vn, vd = T.axis.remap("SSS", [b, n, d])
                slot = T.meta_var(T.cast(slot_ids[vb], "int64"))
                place = T.meta_var(T.cast(history_ids[vb], "int64"))
                if single:
                    output[vb, vd] = storage[slot, place, vd]
                else:
                    output[vb, vn, vd] = storage[slot, place, vn, vd]

    return get


def setter(shape: tuple[int, ...], number: int) -> tirx.PrimFunc:
    """(storage, slot and place in the history of each sequence, value [B, *shape]).

    The value goes to the next place, after the last one to the first.
    """
    height, width, single = prod(shape[:-1]), shape[-1], len(shape) == 1

    @T.prim_func(s_tir=True)
    def set_(
        var_storage: T.handle, var_slots: T.handle, var_history: T.handle, var_value: T.handle
    ) -> None:
        T.func_attr({"global_symbol": f"rnn_state_set_{number}", "tirx.noalias": True})
        slots, history, batch = T.int64(), T.int64(), T.int64()
        storage = T.match_buffer(var_storage, (slots, history, *shape), "float32")
        slot_ids = T.match_buffer(var_slots, (batch,), "int32")
        history_ids = T.match_buffer(var_history, (batch,), "int32")
        value = T.match_buffer(var_value, (batch, *shape), "float32")
        for b, n, d in T.grid(batch, T.int64(height), T.int64(width)):
            with T.sblock("set"):
                vb, vn, vd = T.axis.remap("SSS", [b, n, d])
                slot = T.meta_var(T.cast(slot_ids[vb], "int64"))
                place = T.meta_var((T.cast(history_ids[vb], "int64") + T.int64(1)) % history)
                if single:
                    storage[slot, place, vd] = value[vb, vd]
                else:
                    storage[slot, place, vn, vd] = value[vb, vn, vd]

    return set_
