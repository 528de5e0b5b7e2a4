"""Several products in one parallel kernel, each with a weight and an end of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, cast

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.chosen import chosen, chosen_data
from mlc_rwkv_world.kernels.cpu.llvm_functions import CHOOSE_IR, IMPORT
from mlc_rwkv_world.kernels.cpu.mix import LANES
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.signature import STACK, TensorType
from mlc_rwkv_world.storage.stored import ROWS

# From a vector of sums to one of results.
Act = Callable[[Any, int], Any]


def unchanged(value: Any, _count: int) -> Any:
    return value


@dataclasses.dataclass(frozen=True)
class Ended:
    """A product, what becomes of its sums, and how 32 of them are written: see `mix.storing`.

    They become a result of the type `out`. The blocks are those of the weight from `first` on.
    """

    product: Product
    act: Act
    store: Callable[..., None]
    out: TensorType
    first: int = 0

    @property
    def body(self) -> tuple[object, ...]:
        """Equal for those of a kernel that differ in tensors, their blocks and `act` alone."""
        return (
            self.product.body,
            self.product.inner,
            self.store,
            self.out.shape[2:],
            self.out.dtype,
        )


class Several:
    """Products whose tasks are numbered through: those of `many` and, spread among them, of `few`.

    So each thread, whose tasks follow one another, gets its share of both.
    """

    def __init__(self, many: Sequence[Ended], few: Sequence[Ended] = ()) -> None:
        self.many, self.few = many, few
        self._few = sum(ended.product.tasks for ended in few)
        self.tasks = self._few + sum(ended.product.tasks for ended in many)

    def task(self) -> Callable[..., None]:
        """`run(task, given, rows)`, `given` being x, w and out of each product."""
        many = _in_turn(self.many, 0)
        if not self.few:
            return many
        few, count = _in_turn(self.few, len(self.many)), self._few
        # One of the few, and then so many of the many.
        turn = (self.tasks - count) // count + 1

        @T.inline
        def run(task: Any, given: Any, rows: Any) -> None:
            if task % turn == 0 and task // turn < count:
                few(task // turn, given, rows)
            else:
                many(task - T.min(task // turn + 1, count), given, rows)

        done: Callable[..., None] = run
        return done


def _in_turn(products: Sequence[Ended], first: int) -> Callable[..., None]:
    """`run(task, given, rows)` for products that stand in `given` from `first` on."""
    body = products[0].body
    count = next((i for i, one in enumerate(products) if one.body != body), len(products))
    alike = _alike(products[:count], first)
    if count == len(products):
        return alike
    tasks = sum(one.product.tasks for one in products[:count])
    rest = _in_turn(products[count:], first + count)

    @T.inline
    def run(task: Any, given: Any, rows: Any) -> None:
        if task < tasks:
            alike(task, given, rows)
        else:
            rest(task - tasks, given, rows)

    done: Callable[..., None] = run
    return done


def _alike(products: Sequence[Ended], first: int) -> Callable[..., None]:
    """`_in_turn` of products with the same body: it is there once, and finds its tensors.

    The machine code of a tile is long, and takes long to make.
    """
    product, store = products[0].product, products[0].store
    multiply, tokens, streams, apart = (
        product.tile(),
        product.tokens,
        product.streams,
        product.tasks,
    )
    ends = list(accumulate(one.product.tasks for one in products))
    starts = [0, *ends[:-1]]
    act = _acts([one.act for one in products], ends)
    x_type, w_type, out_type = product.x, product.weight, products[0].out
    blocks = max(one.product.weight.static(0) + one.first for one in products)
    # How far into its weight a task of each begins, and how wide its result is.
    ahead = [one.first for one in products]
    widths = [one.out.static(1) for one in products]

    def data(task: Any, given: Any, which: int) -> Any:
        """Where the values of a product's x, w or out are."""
        return chosen_data(task, ends, [one[which] for one in given[first : first + len(products)]])

    @T.inline
    def run(task: Any, given: Any, rows: Any) -> None:
        T.attr(T.int32(0), IMPORT, CHOOSE_IR)
        # In memory, so that TVM does not look through them wherever they are used.
        place = T.alloc_buffer((3,), "int32", scope=STACK)
        at: T.let[T.int32] = T.cast(task, "int32")
        place[0] = at - chosen(at, ends, starts)
        place[1] = place[0] + chosen(at, ends, ahead)
        place[2] = chosen(at, ends, widths)
        width: T.let[T.int32] = place[2]
        x_data: T.let[T.handle(x_type.dtype)] = data(at, given, 0)
        w_data: T.let[T.handle(w_type.dtype)] = data(at, given, 1)
        out_data: T.let[T.handle(out_type.dtype)] = data(at, given, 2)
        x = T.decl_buffer((rows, *x_type.shape[1:]), x_type.dtype, data=x_data)
        w = T.decl_buffer((blocks, *w_type.shape[1:]), w_type.dtype, data=w_data)
        out = T.decl_buffer((rows, width, *out_type.shape[2:]), out_type.dtype, data=out_data)
        total = T.alloc_buffer((streams * tokens * ROWS,), "float32", scope=STACK)
        values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
        for tile in range((rows + tokens - 1) // tokens):
            multiply(x, w, place[1], tile, rows, total)
            for s in range(streams):
                for t in range(T.min(tokens, rows - tile * tokens)):
                    act(at, total, (s * tokens + t) * ROWS, values)
                    store(values, out, tile * tokens + t, place[0] + s * apart)

    done: Callable[..., None] = run
    return done


def _acts(acts: Sequence[Act], ends: Sequence[int]) -> Callable[..., None]:
    """`act(task, sums, at, values)`: 32 sums, from `at` on, become a product's values.

    That is the one whose task this is, of products whose tasks end at `ends`.
    """
    first = acts[0]
    count = next((i for i, one in enumerate(acts) if one is not first), len(acts))

    @T.inline
    def last(task: Any, sums: Any, at: Any, values: Any) -> None:
        for j in T.unroll(ROWS // LANES):
            values[T.Ramp(j * LANES, 1, LANES)] = first(
                sums[T.Ramp(at + j * LANES, 1, LANES)], LANES
            )

    if count == len(acts):
        return cast(Callable[..., None], last)
    rest, until = _acts(acts[count:], ends[count:]), ends[count - 1]

    @T.inline
    def act(task: Any, sums: Any, at: Any, values: Any) -> None:
        if task < until:
            last(task, sums, at, values)
        else:
            rest(task, sums, at, values)

    done: Callable[..., None] = act
    return done
