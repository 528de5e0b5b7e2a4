"""`x W^T` on a CPU for a packed weight: a tile of rows of x times a block of 32 rows of W."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.arithmetic import Arithmetic, arithmetic_of
from mlc_rwkv_world.kernels.cpu.llvm_functions import IMPORT
from mlc_rwkv_world.kernels.signature import STACK, Signature, TensorType, parallel_if_worth
from mlc_rwkv_world.storage.stored import ROWS, Stored

# Bytes of a cache line, and how far ahead of their use weights are asked for.
_LINE, _AHEAD = 64, 1024
# The same in columns that are read one by one.
COLUMNS_AHEAD = 12
# Cores that a product should be able to keep busy.
_TASKS = 8


def _streams(blocks: int, wanted: int) -> int:
    """How many distant blocks a task reads side by side: `wanted`, or fewer for more tasks."""
    return next((s for s in (wanted, 2) if blocks % s == 0 and blocks // s >= _TASKS), 1)


class Product:
    """The product of an input and a packed weight of these types, in tiles, for a signature.

    `tokens` rows of x share each load of a block of W. Decoding has one row, and waits for memory,
    which answers several streams faster than one: each of its `tasks` computes `streams` blocks,
    task, task + tasks, ...
    """

    def __init__(self, x: TensorType, weight: TensorType, stored: Stored, sig: Signature) -> None:
        self.arithmetic: Arithmetic = arithmetic_of(sig.inputs, weight, stored, sig.target)
        self.x, self.weight, self.stored = x, weight, stored
        self.inner = x.static(1)
        single = x.shape[0] == 1
        self.tokens = 1 if single else self.arithmetic.tokens
        self.streams = _streams(weight.static(0), self.arithmetic.streams) if single else 1
        # How many tasks share the blocks, and how far apart those of one task are.
        self.tasks = weight.static(0) // self.streams
        self.vectors = ROWS // self.arithmetic.lanes if single else self.arithmetic.vectors

    @property
    def body(self) -> tuple[object, ...]:
        """Equal for products of one signature whose tiles differ in tensors, and extents, alone."""
        apart = self.tasks if self.streams > 1 else 0
        return (self.weight.shape[2:], self.weight.dtype, self.stored, self.streams, apart)

    def _prefetch(self) -> Callable[..., None]:
        """`fetch(w, block, step)` asks for the weights that come some steps later.

        A CPU's own prefetching looks too few instructions ahead.
        """
        line = 8 * _LINE // int(self.weight.dtype[-2:])
        lines = self.weight.static(2) // line
        ahead = -(-_AHEAD // (lines * _LINE))
        # A step of a plain weight with several rows is too short to ask in each.
        asked = lines if self.arithmetic.grouped or self.tokens == 1 else 0

        @T.inline
        def fetch(w: Any, block: Any, step: Any) -> None:
            for i in T.unroll(asked):
                T.evaluate(
                    T.call_llvm_intrin(
                        "void",
                        "llvm.prefetch.p0",
                        T.address_of(w[block, step + ahead, i * line]),
                        T.int32(0),
                        T.int32(3),
                        T.int32(1),
                    )
                )

        chosen: Callable[..., None] = fetch
        return chosen

    def tile(self) -> Callable[..., None]:
        """`multiply(x, w, task, tile, rows, total)` for a kernel's body.

        It sets total, a local float32 buffer [streams * tokens * 32], to the sums of the task's
        blocks and of rows tile * tokens on; rows past the end repeat the last. There are as many
        steps along K as w says, which may be known when it runs.
        """
        fetch = self._prefetch()
        add: Any = self.arithmetic.add
        lanes = self.arithmetic.lanes
        tokens, vectors, streams, tasks = self.tokens, self.vectors, self.streams, self.tasks
        passes = ROWS // lanes // vectors
        # A group's own sums take all registers, so that its rows come one vector after another.
        by_group = self.arithmetic.grouped
        rows_loop = T.serial if by_group and tokens > 1 else T.unroll

        def vector(s: Any, t: Any, v: Any) -> Any:
            return T.Ramp((s * tokens + t) * ROWS + v * lanes, 1, lanes)

        def token(tile: Any, t: Any, rows: Any) -> Any:
            return T.min(tile * tokens + t, rows - 1) if tokens > 1 else tile

        @T.inline
        def clear(part: Any, total: Any) -> None:
            for s in T.unroll(streams):
                for t in T.unroll(tokens):
                    for v in T.unroll(vectors):
                        total[vector(s, t, part * vectors + v)] = T.Broadcast(T.float32(0), lanes)

        @T.inline
        def by_vectors(x: Any, w: Any, task: Any, tile: Any, rows: Any, total: Any) -> None:
            for part in T.unroll(passes):
                clear(part, total)
            for step in range(w.shape[1]):
                for s in T.serial(streams):
                    fetch(w, task + s * tasks, step)
                    for v in rows_loop(passes * vectors):
                        for t in T.unroll(tokens):
                            total[vector(s, t, v)] = add(
                                total[vector(s, t, v)],
                                x,
                                token(tile, t, rows),
                                w,
                                task + s * tasks,
                                step,
                                v * lanes,
                            )

        @T.inline
        def by_tokens(x: Any, w: Any, task: Any, tile: Any, rows: Any, total: Any) -> None:
            for part in T.unroll(passes):
                clear(part, total)
                for step in range(w.shape[1]):
                    for s in T.unroll(streams):
                        fetch(w, task + s * tasks, step)
                        for t in T.unroll(tokens):
                            for v in T.unroll(vectors):
                                total[vector(s, t, part * vectors + v)] = add(
                                    total[vector(s, t, part * vectors + v)],
                                    x,
                                    token(tile, t, rows),
                                    w,
                                    task + s * tasks,
                                    step,
                                    (part * vectors + v) * lanes,
                                )

        # Half a tile for the last rows, of which there may be one or two.
        whole: Any = self.arithmetic.tile(tokens)
        half: Any = self.arithmetic.tile(max(1, tokens // 2))

        @T.inline
        def by_groups(x: Any, w: Any, task: Any, tile: Any, rows: Any, total: Any) -> None:
            for part in T.unroll(passes):
                clear(part, total)
            if rows - tile * tokens > tokens // 2:
                for step in range(w.shape[1]):
                    fetch(w, task, step)
                    whole(x, tile * tokens, rows - 1, w, task, step, total, 0)
            else:
                for step in range(w.shape[1]):
                    fetch(w, task, step)
                    half(x, tile * tokens, rows - 1, w, task, step, total, 0)

        @T.inline
        def by_single_groups(x: Any, w: Any, task: Any, tile: Any, rows: Any, total: Any) -> None:
            for part in T.unroll(passes):
                clear(part, total)
            for step in range(w.shape[1]):
                for s in T.serial(streams):
                    fetch(w, task + s * tasks, step)
                    whole(x, tile, rows - 1, w, task + s * tasks, step, total, s * ROWS)

        way: Any = by_vectors if by_group else by_tokens
        if whole is not None:
            way = by_groups if tokens > 1 else by_single_groups
        imports = self.arithmetic.imports

        @T.inline
        def multiply(x: Any, w: Any, task: Any, tile: Any, rows: Any, total: Any) -> None:
            T.attr(T.int32(0), IMPORT, imports)
            way(x, w, task, tile, rows, total)

        chosen: Callable[..., None] = multiply if imports else way
        return chosen

    @property
    def reads_columns(self) -> bool:
        """Whether columns of the weight lie apart, and one row of x can leave some out."""
        arithmetic = self.arithmetic
        by_column = arithmetic.steps() == self.inner and arithmetic.add is not None
        return self.tokens == 1 and by_column and not arithmetic.grouped

    def columns(self) -> Callable[..., None]:
        """`multiply(x, w, task, ids, count, total)`: `tile` for one row, of some columns only.

        `ids` int32 holds `count` of them, and then COLUMNS_AHEAD of any.
        """
        add: Any = self.arithmetic.add
        lanes, vectors, streams, tasks = (
            self.arithmetic.lanes,
            self.vectors,
            self.streams,
            self.tasks,
        )
        line = 8 * _LINE // int(self.weight.dtype[-2:])
        lines = self.weight.static(2) // line

        def vector(s: Any, v: Any) -> Any:
            return T.Ramp(s * ROWS + v * lanes, 1, lanes)

        @T.inline
        def multiply(x: Any, w: Any, task: Any, ids: Any, count: Any, total: Any) -> None:
            for s in T.unroll(streams):
                for v in T.unroll(vectors):
                    total[vector(s, v)] = T.Broadcast(T.float32(0), lanes)
            for i in range(count):
                for s in T.unroll(streams):
                    for j in T.unroll(lines):
                        T.evaluate(
                            T.call_llvm_intrin(
                                "void",
                                "llvm.prefetch.p0",
                                T.address_of(w[task + s * tasks, ids[i + COLUMNS_AHEAD], j * line]),
                                T.int32(0),
                                T.int32(3),
                                T.int32(1),
                            )
                        )
                    for v in T.unroll(vectors):
                        total[vector(s, v)] = add(
                            total[vector(s, v)], x, 0, w, task + s * tasks, ids[i], v * lanes
                        )

        chosen: Callable[..., None] = multiply
        return chosen


def linear_packed(sig: Signature) -> tirx.PrimFunc:
    """(x, packed weight) -> [T, N] float32."""
    (x_type, w_type), (stored,) = sig.args, sig.stored
    product = Product(x_type, w_type, stored, sig)
    multiply, tokens = product.tile(), product.tokens
    streams, count = product.streams, product.tasks
    outer = sig.outs[0].static(1)
    known = x_type.shape[0]
    work = outer * w_type.static(1) * max(1, stored.group)
    tasks = parallel_if_worth(work if known == 1 else None)
    x_shape, w_shape = x_type.shape[1:], w_type.shape

    @T.prim_func(s_tir=True)
    def kernel(var_x: T.handle, w: T.Buffer(w_shape, w_type.dtype), var_y: T.handle) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, *x_shape), x_type.dtype)
        y = T.match_buffer(var_y, (rows, outer), "float32")
        for task in tasks(count):
            total = T.alloc_buffer((streams * tokens * ROWS,), "float32", scope=STACK)
            for tile in range((rows + tokens - 1) // tokens):
                multiply(x, w, task, tile, rows, total)
                for s in range(streams):
                    for t in range(T.min(tokens, rows - tile * tokens)):
                        for r in range(T.min(ROWS, outer - (task + s * count) * ROWS)):
                            y[tile * tokens + t, (task + s * count) * ROWS + r] = total[
                                (s * tokens + t) * ROWS + r
                            ]

    return kernel
