"""A report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32, INT8
from mlc_rwkv_world.model.fp32_layers import spelled
from mlc_rwkv_world.numerics.report import Reading, Report

# What a library's products do with values of this arithmetic.
_ROUNDED = {
    INT8: "inputs of its products rounded to 8 bits",
    BFLOAT16: "inputs and weights of its products rounded to bfloat16",
}
_HEADINGS = (
    "operation",
    "type",
    "largest",
    "of range",
    "error",
    "8 bits",
    "first that is not finite",
)


def table(report: Report, *, everything: bool) -> Iterator[str]:
    """Lines of text; without `everything`, blocks without trouble are one line each."""
    yield (
        f"{report.model}: {report.quantization}, computed in {report.compute_dtype}, "
        f"{spelled(report.fp32_layers)} of {report.num_hidden_layers} blocks in float32; "
        f"{len(report.prompts)} prompts"
    )
    if report.against is not None:
        yield f"error: root mean square of the difference from {report.against}, relative"
    measured = any(reading.loss is not None for reading in report.readings)
    if measured:
        yield "8 bits: what a product loses where a CPU rounds its inputs, median of its channels"
    yield ""
    needed = {need.block for need in report.needed}
    width = max(len(reading.operation) for reading in report.readings)
    yield f"{'block':>5}  {_line(_HEADINGS, width, measured)}"
    groups: dict[tuple[int, int | None], list[Reading]] = {}
    side = 0
    for reading in report.readings:
        # What comes before the blocks and what comes after are two groups.
        side = side if reading.block is None else 1
        groups.setdefault((side, reading.block), []).append(reading)
    for (_, block), readings in groups.items():
        shown = readings
        troubled = any(reading.troubled or reading.drowned for reading in readings)
        if not everything and not troubled:
            shown = [max(readings, key=lambda reading: reading.share)]
        for reading in shown:
            label = "" if block is None else str(block)
            yield f"{label:>5}  {_line(_cells(reading), width, measured)}".rstrip()
        if block in needed and troubled:
            yield "       (from here on: as it is with this block in float32)"
    yield ""
    yield from _conclusion(report)


def _cells(reading: Reading) -> tuple[str, ...]:
    share = "" if reading.dtype == "float32" else f"{reading.share:.2%}"
    error = "" if reading.error is None else f"{reading.error:.2e}"
    bad = f"{reading.kind}: {reading.first_bad}; {reading.bad} values" if reading.bad else ""
    mark = " <" if reading.troubled and not reading.bad else ""
    loss = "" if reading.loss is None else f"{reading.loss:.2%}"
    largest = f"{reading.largest:.4g}"
    return reading.operation, reading.dtype, largest, share + mark, error, loss, bad


def _line(cells: tuple[str, ...], width: int, measured: bool) -> str:
    name, dtype, largest, share, error, loss, bad = cells
    loss = f"{loss:>7}  " if measured else ""
    return f"{name:<{width}}  {dtype:<7}  {largest:>9}  {share:>8}  {error:>8}  {loss}{bad}"


def _conclusion(report: Report) -> Iterator[str]:
    library = report.library
    if library is not None and library.fault is not None:
        yield f"Its library was not asked: {library.fault}"
    elif library is not None:
        text = f"The library here computes in {library.compute_dtype}"
        if library.compute_dtype == "float16":
            text += f" (float32 in blocks: {spelled(library.fp32_layers)})"
        elif library.arithmetic != FLOAT32:
            text += f", {_ROUNDED[library.arithmetic]}"
            text += f" (but in blocks: {spelled(library.fp32_layers)})"
        if library.bad_logits:
            text += f"; {library.bad_logits} of its logits are not finite"
        elif library.difference is not None:
            text += f"; its logits differ from those above by at most {library.difference:.2g}"
        else:
            text += "; its logits are finite"
        yield f"{text}."
    first = report.first_bad
    if first is not None:
        place = "" if first.block is None else f"block {first.block}, "
        yield f"First {first.kind}: {place}{first.operation}, {first.first_bad}."
    *reasons, option = report.recommendation()
    for reason in reasons:
        yield reason[0].upper() + reason[1:]
    yield f"Recommended:  {option}"
