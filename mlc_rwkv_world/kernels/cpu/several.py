"""Several products in one parallel kernel, each with a weight and an end of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.mix import LANES
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.signature import STACK
from mlc_rwkv_world.storage.stored import ROWS

# From a vector of sums to one of results.
Act = Callable[[Any, int], Any]


def unchanged(value: Any, _count: int) -> Any:
    return value


@dataclasses.dataclass(frozen=True)
class Ended:
    """A product, what becomes of its sums, and how 32 of them are written: see `mix.storing`.

    Its blocks are those of the weight from `first` on.
    """

    product: Product
    act: Act
    store: Callable[..., None]
    first: int = 0

    def task(self) -> Callable[..., None]:
        """`run(task, x, w, out, rows)`: all rows of one of the product's tasks."""
        product, act, store = self.product, self.act, self.store
        multiply, tokens = product.tile(), product.tokens
        streams, tasks, first = product.streams, product.tasks, self.first

        @T.inline
        def run(task: Any, x: Any, w: Any, out: Any, rows: Any) -> None:
            total = T.alloc_buffer((streams * tokens * ROWS,), "float32", scope=STACK)
            values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            for tile in range((rows + tokens - 1) // tokens):
                multiply(x, w, task + first, tile, rows, total)
                for s in range(streams):
                    for t in range(T.min(tokens, rows - tile * tokens)):
                        for j in T.unroll(ROWS // LANES):
                            values[T.Ramp(j * LANES, 1, LANES)] = act(
                                total[T.Ramp((s * tokens + t) * ROWS + j * LANES, 1, LANES)], LANES
                            )
                        store(values, out, tile * tokens + t, task + s * tasks)

        chosen: Callable[..., None] = run
        return chosen


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

        chosen: Callable[..., None] = run
        return chosen


def _in_turn(products: Sequence[Ended], first: int) -> Callable[..., None]:
    """`run(task, given, rows)` for products that stand in `given` from `first` on."""
    one, count = products[0].task(), products[0].product.tasks

    @T.inline
    def last(task: Any, given: Any, rows: Any) -> None:
        x, w, out = T.meta_var(given[first])
        one(task, x, w, out, rows)

    if len(products) == 1:
        return cast(Callable[..., None], last)
    rest = _in_turn(products[1:], first + 1)

    @T.inline
    def run(task: Any, given: Any, rows: Any) -> None:
        x, w, out = T.meta_var(given[first])
        if task < count:
            one(task, x, w, out, rows)
        else:
            rest(task - count, given, rows)

    chosen: Callable[..., None] = run
    return chosen
