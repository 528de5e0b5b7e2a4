"""The RWKV-4 recurrence over whole prompts on CUDA: one launch, a warp for 32 channels.

Each step waits for the one before it, and would wait for memory too: so k and v are copied to
shared memory some dozens of steps ahead.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.dot import WARP
from mlc_rwkv_world.kernels.cuda.intrinsics import copy_async, copy_commit, copy_wait, sync_warp
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.versions.rwkv4.wkv import accumulate, kernel_of, output

# Steps that are copied together, and how many such copies there are room for.
STEPS = 16
STAGES = 4
_PIECE = 4


def suits(sig: Signature) -> bool:
    """Whether the kernel takes these types."""
    return sig.has_async_copies and sig.args[0].static(1) % WARP == 0


def wkv(sig: Signature) -> tirx.PrimFunc:
    """(k, v, w, u, state, offsets) -> (y, state), as `versions.rwkv4.wkv`."""
    width = sig.args[0].static(1)
    blocks, row_pieces = width // WARP, WARP // _PIECE
    copies = STEPS * row_pieces // WARP

    @T.inline
    def body(k, v, w, u, old, offsets, y, new, batch):  # type: ignore[no-untyped-def]
        for piece in T.thread_binding(batch * blocks, thread="blockIdx.x"):
            for lane in T.thread_binding(WARP, thread="threadIdx.x"):
                ks = T.alloc_buffer((STAGES, STEPS, WARP), "float32", scope="shared")
                vs = T.alloc_buffer((STAGES, STEPS, WARP), "float32", scope="shared")
                state = T.alloc_buffer((3,), "float32", scope="local")
                step = T.alloc_buffer((3,), "float32", scope="local")
                s = T.meta_var(T.truncdiv(piece, T.int64(blocks)))
                first = T.meta_var(T.truncmod(piece, T.int64(blocks)) * T.int64(WARP))
                c = T.meta_var(first + T.cast(lane, "int64"))
                begin = T.meta_var(T.cast(offsets[s], "int64"))
                count = T.meta_var(offsets[s + 1] - offsets[s])

                @T.inline
                def start(turn):  # type: ignore[no-untyped-def]
                    for i in T.unroll(copies):
                        at = T.meta_var(i * WARP + lane)
                        # What is beyond the sequence is copied from its end, and not used.
                        row = T.meta_var(
                            begin
                            + T.cast(T.min(turn * STEPS + at // row_pieces, count - 1), "int64")
                        )
                        column = T.meta_var(at % row_pieces * _PIECE)
                        copy_async(
                            T.address_of(ks[turn % STAGES, at // row_pieces, column]),
                            T.address_of(k[row, first + T.cast(column, "int64")]),
                            16,
                        )
                        copy_async(
                            T.address_of(vs[turn % STAGES, at // row_pieces, column]),
                            T.address_of(v[row, first + T.cast(column, "int64")]),
                            16,
                        )

                state[0] = old[s, 0, c]
                state[1] = old[s, 1, c]
                state[2] = old[s, 2, c]
                for turn in T.unroll(STAGES - 1):
                    if turn * STEPS < count:
                        start(turn)
                    copy_commit()
                for turn in range((count + (STEPS - 1)) // STEPS):
                    copy_wait(STAGES - 2)
                    sync_warp()
                    if (turn + (STAGES - 1)) * STEPS < count:
                        start(turn + (STAGES - 1))
                    copy_commit()
                    for j in range(T.min(STEPS, count - turn * STEPS)):
                        step[0] = ks[turn % STAGES, j, lane]
                        step[1] = vs[turn % STAGES, j, lane]
                        step[2] = state[2] + w[c]
                        y[begin + T.cast(turn * STEPS + j, "int64"), c] = output(
                            state[0], state[1], state[2], u[c] + step[0], step[1]
                        )
                        state[0] = accumulate(state[0], step[2], step[0], step[1])
                        state[1] = accumulate(state[1], step[2], step[0], T.float32(1))
                        state[2] = T.max(step[2], step[0])
                new[s, 0, c] = state[0]
                new[s, 1, c] = state[1]
                new[s, 2, c] = state[2]

    return kernel_of(width, body)
