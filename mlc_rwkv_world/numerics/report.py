"""What was seen of a model's values, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mlc_rwkv_world.kernels.cpu.arithmetic import FLOAT32
from mlc_rwkv_world.model.fp32_layers import spelled

FLOAT16_LARGEST = 65504.0
LARGEST = {"float16": FLOAT16_LARGEST, "float32": 3.4028234663852886e38}
# Two bits below the end: other texts than those that were read can have larger values.
MARGIN = 0.25
# Inputs rounded to bytes cost about half a percent of what has no outliers.
MOST_LOSS = 0.1


@dataclasses.dataclass(frozen=True)
class Place:
    """One value: the prompt, the token's position in it, its id and text, and the channel."""

    prompt: int
    position: int
    token: int
    text: str
    channel: int

    def __str__(self) -> str:
        return f"channel {self.channel}, token {self.position} of prompt {self.prompt} {self.text}"


@dataclasses.dataclass(frozen=True)
class Reading:
    """One operation's result over all tokens.

    `largest` is the largest finite magnitude and `share` its share of the type's range; `bad` is
    how many values are no numbers or infinite, and `first_bad` the first of them by token.
    `error` is the root mean square of the difference from the reference over that of the
    reference. `loss` is what a product loses with inputs rounded to bytes, see `byte_inputs`; None
    where nothing is rounded.
    """

    block: int | None
    operation: str
    dtype: str
    largest: float
    share: float
    where: Place
    bad: int
    kind: str | None
    first_bad: Place | None
    error: float | None
    loss: float | None = None

    @property
    def troubled(self) -> bool:
        """Whether this operation cannot be trusted in float16."""
        return self.bad > 0 or (self.dtype == "float16" and self.share > MARGIN)

    @property
    def drowned(self) -> bool:
        """Whether this product loses too much where its inputs are rounded to bytes."""
        return self.loss is not None and self.loss > MOST_LOSS

    def why(self) -> str:
        """What is wrong, in words."""
        if self.bad:
            return (
                f"{self.operation} gives {self.kind} in {self.dtype} ({self.bad} values; "
                f"first {self.first_bad})"
            )
        if self.drowned:
            return (
                f"{self.operation} loses {self.loss:.0%} where a CPU rounds its inputs to 8 bits: "
                "single ones are far larger than those beside them"
            )
        return (
            f"{self.operation} reaches {self.largest:.4g}, {self.share:.0%} of {self.dtype}'s "
            f"range ({self.where})"
        )


@dataclasses.dataclass(frozen=True)
class Need:
    """A block that has to compute in float32, and why."""

    block: int
    why: str


@dataclasses.dataclass(frozen=True)
class Library:
    """What an artifact's own library says to the same prompts.

    `fault` says why it could not be asked, in which case nothing else is known. `arithmetic` is
    what its products compute in outside of `fp32_layers`, of several the least exact. `difference`
    is the largest one between its logits and those found here, None where something was put right
    here that the library does not put right.
    """

    compute_dtype: str = ""
    fp32_layers: tuple[int, ...] = ()
    arithmetic: str = FLOAT32
    bad_logits: int = 0
    difference: float | None = None
    fault: str | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """A model on some prompts.

    From a block that was `needed` on, readings are what follows once it computes in float32.
    `leaving` are blocks whose float32 output is outside float16's range.
    """

    model: str
    quantization: str
    compute_dtype: str
    fp32_layers: tuple[int, ...]
    rescale_every: int
    num_hidden_layers: int
    against: str | None
    prompts: tuple[str, ...]
    readings: tuple[Reading, ...]
    needed: tuple[Need, ...]
    leaving: tuple[int, ...]
    bad_logits: int
    library: Library | None = None

    @property
    def first_bad(self) -> Reading | None:
        """The first operation that gives what is no finite number."""
        return next((reading for reading in self.readings if reading.bad), None)

    @property
    def recommended(self) -> tuple[int, ...]:
        """The blocks that should compute in float32, those that do already included."""
        return tuple(sorted({*self.fp32_layers, *(need.block for need in self.needed)}))

    def as_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            **dataclasses.asdict(self),
            "recommended": list(self.recommended),
            "recommendation": self.recommendation(),
        }

    def recommendation(self) -> list[str]:
        """Lines to print; the last can be pasted."""
        lines = [f"block {need.block}: {need.why}" for need in self.needed]
        if self.leaving:
            lines.append(
                f"the residual leaves block {self.leaving[0]} outside float16's range: the blocks "
                "that follow have to compute in float32 until it is back"
                + (
                    f", or a checkpoint that says rescale_every below {self.rescale_every}."
                    if self.rescale_every
                    else ", or the residual has to be halved on its way (rescale_every)."
                )
            )
        if self.bad_logits:
            lines.append(
                f"{self.bad_logits} logits are no finite numbers even so: float32 is no cure, and "
                "the checkpoint may be damaged."
            )
        for reading in self.readings:
            if reading.block is None and reading.drowned:
                lines.append(f"{reading.why()}: build for a CPU with --arithmetic float32.")
        if self.needed:
            return [*lines, f"--fp32-layers {spelled(self.recommended)}"]
        narrow = [reading for reading in self.readings if reading.dtype == "float16"]
        if narrow:
            most = max(narrow, key=lambda reading: reading.share)
            place = "" if most.block is None else f"block {most.block}, "
            lines.append(
                f"nothing comes near the end of float16's range; {place}{most.operation} comes "
                f"nearest with {most.largest:.4g}, {most.share:.2%}."
            )
        else:
            lines.append("everything computes in float32.")
        rounded = [reading for reading in self.readings if reading.loss is not None]
        if rounded:
            most = max(rounded, key=lambda reading: reading.loss or 0.0)
            place = "" if most.block is None else f"block {most.block}, "
            lines.append(
                f"inputs rounded to 8 bits, as a CPU does it, cost at most {most.loss:.1%} of a "
                f"product ({place}{most.operation})."
            )
        return [*lines, f"--fp32-layers {spelled(self.recommended)}"]


def operations(readings: Sequence[Reading]) -> list[str]:
    """The names of the blocks' operations, in order."""
    return list(dict.fromkeys(r.operation for r in readings if r.block is not None))
