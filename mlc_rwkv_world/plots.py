"""Pictures of what was measured. They need matplotlib, which the extra `plot` brings."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from mlc_rwkv_world.artifact.output import Kind, Output
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.errors import InstallationError, UsageError

_PROGRAM = "mlc-rwkv-world"
# Who made a picture, by the name that each of the formats has for it.
_MAKERS = {".png": {"Software": _PROGRAM}, ".svg": {"Creator": _PROGRAM, "Date": None}}
KIND = Kind(
    "plot of ours",
    re.compile(rb"(\x89PNG\r\n.{,200}tEXtSoftware\x00|<\?xml.{,5000})" + _PROGRAM.encode(), re.S),
)


def check(file: str) -> None:
    """Raise UsageError where `file` can be no plot, and InstallationError without matplotlib."""
    output = Output(expanded(file), KIND)
    if output.path.suffix not in _MAKERS:
        raise UsageError(f"--plot {file}: give a name that ends in .svg or .png.")
    if find_spec("matplotlib") is None:
        raise InstallationError(
            "--plot needs matplotlib: install it, or this package with its extra `plot`."
        )
    output.check()


def losses(file: str, model: str, by_position: Sequence[float]) -> None:
    """Write how well each place of a window is predicted, in nats for each token."""
    figure, axes = _figure()
    axes.plot(range(1, len(by_position) + 1), by_position, linewidth=0.8)
    axes.set(title=model, xlabel="tokens read before", ylabel="nats per token")
    if len(by_position) > 1:
        axes.set_xscale("log")
    _write(figure, file)


def speeds(file: str, result: Mapping[str, Any]) -> None:
    """Write the rows of `bench`, in tokens per second."""
    figure, axes = _figure()
    rows = [(row["what"], row["tokens_per_second"]) for row in reversed(result["results"])]
    bars = axes.barh([what for what, _ in rows], [speed for _, speed in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(x=0.15)
    axes.set(title=f"{result['model']} on {result['device']}", xlabel="tokens per second")
    _write(figure, file)


def _figure() -> Any:
    # Not pyplot: nothing global is touched, and no window is ever opened.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()


def _write(figure: Any, file: str) -> None:
    path = expanded(file)
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:], dpi=150, metadata=_MAKERS[path.suffix])
    Output(path, KIND).write(data.getvalue())
