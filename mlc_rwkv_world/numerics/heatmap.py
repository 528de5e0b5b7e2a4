"""A report as a picture: blocks by operations, coloured by how much of the range they use."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from mlc_rwkv_world.characters import printable
from mlc_rwkv_world.numerics.report import FLOAT16_LARGEST, Reading, Report, operations

_CELL, _LEFT, _TOP = 22, 60, 190
# From 2^-16 of float16's range, where nothing is near its end, to all of it.
_OCTAVES = 16
_STOPS = ((255, 255, 240), (255, 237, 160), (254, 178, 76), (240, 59, 32), (128, 0, 38))
_BAD = "#111111"
_LEGEND = (_OCTAVES // 2 + 4) * 14


def heatmap(report: Report) -> str:
    """An SVG document. A dot marks what computes in float32; a cross what is not finite."""
    names = operations(report.readings)
    width = _LEFT + len(names) * _CELL + 140
    height = _TOP + max(report.num_hidden_layers * _CELL, _LEGEND) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 20, f"{report.model}, {report.quantization}: share of float16's range", size=14),
    ]
    for column, name in enumerate(names):
        x, y = _LEFT + column * _CELL + _CELL // 2 + 4, _TOP - 8
        parts.append(f'<text transform="translate({x},{y}) rotate(-60)">{escape(name)}</text>')
    parts.append(_text(_LEFT - 8, _TOP - 8, "block", anchor="end"))
    for block in range(report.num_hidden_layers):
        y = _TOP + block * _CELL
        parts.append(_text(_LEFT - 8, y + 15, str(block), anchor="end"))
    for reading in report.readings:
        if reading.block is not None:
            column = names.index(reading.operation)
            parts += _cell(reading, _LEFT + column * _CELL, _TOP + reading.block * _CELL)
    parts += _legend(_LEFT + len(names) * _CELL + 30)
    parts.append(_text(10, height - 20, f"Recommended: {report.recommendation()[-1]}"))
    return "\n".join([*parts, "</svg>", ""])


def _share(reading: Reading) -> float:
    return reading.largest / FLOAT16_LARGEST


def _cell(reading: Reading, x: int, y: int) -> list[str]:
    color = _BAD if reading.bad else _color(_share(reading))
    share = f"{_share(reading):.3%} of float16's range"
    seen = f"{reading.kind}, {reading.first_bad}" if reading.bad else share
    title = f"block {reading.block}, {reading.operation}: {reading.largest:.4g}, {seen}"
    parts = [
        f'<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{_CELL - 2}" fill="{color}">'
        f"<title>{escape(title)}</title></rect>"
    ]
    middle_x, middle_y = x + (_CELL - 2) // 2, y + (_CELL - 2) // 2
    if reading.bad:
        a, b = 5, _CELL - 7
        parts.append(
            f'<path d="M{x + a} {y + a}L{x + b} {y + b}M{x + b} {y + a}L{x + a} {y + b}" '
            'stroke="white" stroke-width="2"/>'
        )
    elif reading.dtype == "float32":
        parts.append(f'<circle cx="{middle_x}" cy="{middle_y}" r="2" fill="#555555"/>')
    return parts


def _color(share: float) -> str:
    """White for 2^-16 and less, dark red for the whole range and more."""
    octaves = math.log2(share) if share > 0 else -math.inf
    place = min(max(octaves / _OCTAVES + 1, 0), 1) * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    mixed = (
        round(a + (b - a) * (place - low))
        for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True)
    )
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _legend(x: int) -> list[str]:
    parts = []
    for step in range(0, _OCTAVES + 1, 2):
        y = _TOP + step // 2 * 14
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" fill="{_color(2.0**-step)}"/>')
        parts.append(_text(x + 20, y + 11, "all" if step == 0 else f"2^-{step}"))
    y = _TOP + (_OCTAVES // 2 + 2) * 14
    parts.append(f'<rect x="{x}" y="{y - 11}" width="14" height="14" fill="{_BAD}"/>')
    parts.append(_text(x + 20, y, "not finite"))
    parts.append(f'<circle cx="{x + 7}" cy="{y + 15}" r="2" fill="#555555"/>')
    parts.append(_text(x + 20, y + 19, "in float32"))
    return parts


def _text(x: int, y: int, text: str, *, anchor: str = "start", size: int = 11) -> str:
    # XML has no place for most controls, and UTF-8 none for a name of other bytes.
    shown = escape(printable(text))
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{shown}</text>'
