"""Looks at every operation of a model, block by block, and finds which blocks need float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from mlc_rwkv_world.numerics.model import Model
from mlc_rwkv_world.numerics.prompts import Prompts
from mlc_rwkv_world.numerics.report import (
    FLOAT16_LARGEST,
    LARGEST,
    Need,
    Place,
    Reading,
    Report,
)
from mlc_rwkv_world.numerics.stepwise import Array, Seen, Steps, Stepwise
from mlc_rwkv_world.numerics.subject import Subject
from mlc_rwkv_world.tokenizer import WorldTokenizer
from mlc_rwkv_world.versions.table import version_of
from mlc_rwkv_world.versions.values import RESIDUAL, Carried, Value, finish

Progress = Callable[[int, int], None]
T = TypeVar("T")


def observe(
    subject: Subject,
    prompts: Prompts,
    texts: Sequence[str],
    *,
    reference: Model | None = None,
    against: str | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Report, Array]:
    """A report on the subject after reading prompts, which are `texts`, and its logits [B, V].

    `reference`, called `against`, is what it is compared with. Where a block leaves float16's
    range, or comes within a quarter of its end, or has a product that cannot bear inputs of 8 bits
    although it is to have them, it is computed again in float32, and what follows is seen as it
    then is.
    """
    observer = _Observer(subject, prompts, reference)
    return observer.run(texts, against, progress)


class _Observer:
    def __init__(self, subject: Subject, prompts: Prompts, reference: Model | None) -> None:
        self.subject = subject
        self.prompts = prompts
        self.config = subject.model.config
        self.ours = Stepwise(subject.model, prompts)
        self.theirs = Stepwise(reference, prompts) if reference is not None else None
        self.readings: list[Reading] = []
        self.needed: list[Need] = []
        self.leaving: list[int] = []

    def run(
        self, texts: Sequence[str], against: str | None, progress: Progress
    ) -> tuple[Report, Array]:
        ours, theirs, layers = self.ours, self.theirs, self.config.num_hidden_layers
        _, x, other = self._section(
            None, ours.first(), theirs.first() if theirs is not None else None
        )
        for block in range(layers):
            x, other = self._block(block, x, other)
            progress(block + 1, layers)
        last = theirs.last(other) if theirs is not None and other is not None else None
        _, logits, _ = self._section(None, ours.last(x), last)
        model = self.subject.model
        report = Report(
            model=self.subject.name,
            quantization=model.format.name,
            compute_dtype=model.compute_dtype,
            fp32_layers=tuple(self.config.fp32_layers or ()),
            rescale_every=self.config.rescale_every,
            num_hidden_layers=layers,
            against=against,
            prompts=tuple(texts),
            readings=tuple(self.readings),
            needed=tuple(self.needed),
            leaving=tuple(self.leaving),
            bad_logits=int(np.count_nonzero(~np.isfinite(logits))),
        )
        return report, logits

    def _block(
        self, block: int, x: Carried, other: Carried | None
    ) -> tuple[Carried, Carried | None]:
        """One block: what leaves it, and what leaves the reference's."""
        ours, theirs = self.ours, self.theirs
        narrow, wide = ours.model.narrow, ours.computes_wide(block)
        if narrow and not wide and x[0].dtype == np.float32 and _largest(x) > FLOAT16_LARGEST:
            why = f"its input is {_largest(x):.6g}, which float16 does not hold"
            self.needed.append(Need(block, why))
            wide = True
        beside = None
        if theirs is not None and other is not None:
            beside = theirs.block(block, other, wide=theirs.computes_wide(block))
        readings, out, other = self._section(block, ours.block(block, x, wide=wide), beside)
        troubles = [reading for reading in readings if narrow and reading.troubled]
        troubles += [reading for reading in readings if reading.drowned]
        if troubles and not wide:
            worst = next((t for t in troubles if t.bad), troubles[0])
            self.needed.append(Need(block, worst.why()))
            if narrow:
                out, wide = finish(ours.block(block, x, wide=True)), True
        if narrow and wide and _largest(out) > FLOAT16_LARGEST:
            self.leaving.append(block)
        return out, other

    def _section(
        self, block: int | None, ours: Steps[T], theirs: Steps[T] | None
    ) -> tuple[list[Reading], T, T | None]:
        """Reads a part of the model and, in step with it, of the reference."""
        readings: list[Reading] = []
        other = _Follower(theirs) if theirs is not None else None
        while True:
            try:
                seen = next(ours)
            except StopIteration as end:
                out: T = end.value
                break
            expected = other.values(seen.value.name) if other is not None else None
            if expected is not None:
                expected = expected * self._factor(seen.value, block)
            readings.append(self._reading(block, seen, expected))
        self.readings += readings
        return readings, out, other.finish() if other is not None else None

    def _factor(self, value: Value, block: int | None) -> float:
        """What a residual that is halved more often than the reference's is smaller by."""
        halved = version_of(self.config.model_version).halved_outputs
        after = block is None and value.layer == RESIDUAL
        if self.theirs is None or not (after or f"{value.layer}.weight" in halved):
            return 1.0
        block = self.config.num_hidden_layers if block is None else block
        ours, theirs = (
            config.halvings(block) for config in (self.config, self.theirs.model.config)
        )
        return float(0.5 ** (ours - theirs))

    def _reading(self, block: int | None, seen: Seen, expected: Array | None) -> Reading:
        name, values = seen.value.name, seen.value.values
        dtype = str(values.dtype)
        values = values.astype(np.float32).reshape(len(values), -1)
        finite = np.isfinite(values)
        magnitudes = np.where(finite, np.abs(values), 0)
        largest = float(magnitudes.max())
        bad = int(values.size - np.count_nonzero(finite))
        first = self._place(np.argmax(~finite), values) if bad else None
        kind = None
        if bad:
            kind = "NaN" if np.isnan(values.flat[np.argmax(~finite)]) else "infinity"
        return Reading(
            block=block,
            operation=name,
            dtype=dtype,
            largest=largest,
            share=largest / LARGEST[dtype],
            where=self._place(np.argmax(magnitudes), values),
            bad=bad,
            kind=kind,
            first_bad=first,
            error=_error(values, expected) if expected is not None and not bad else None,
            loss=seen.loss,
        )

    def _place(self, flat: np.intp, values: Array) -> Place:
        row, channel = divmod(int(flat), values.shape[1])
        prompts = self.prompts
        if len(values) == prompts.tokens:
            prompt, position = prompts.place(row)
        else:
            # One row for each prompt: its last token.
            prompt, position = row, len(prompts.ids[row]) - 1
        token = prompts.ids[prompt][position]
        return Place(prompt, position, token, _shown(self.subject.tokenizer, token), channel)


class _Follower(Generic[T]):
    """A reference's values by name, read in step with the model's."""

    def __init__(self, steps: Steps[T]) -> None:
        self.steps = steps
        self.out: T | None = None
        self.ahead: dict[str, Array] = {}

    def values(self, name: str) -> Array | None:
        """The reference's values of this name, float64; None where it has no such operation."""
        while name not in self.ahead and self.out is None:
            try:
                found = next(self.steps).value
                self.ahead[found.name] = found.values.astype(np.float64)
            except StopIteration as end:
                self.out = end.value
        return self.ahead.pop(name, None)

    def finish(self) -> T:
        return finish(self.steps) if self.out is None else self.out


def _largest(carried: Carried) -> float:
    """The largest magnitude in the residual that passes between two blocks."""
    return float(np.abs(np.nan_to_num(carried[0], nan=0.0)).max())


def _error(values: Array, expected: Array) -> float | None:
    scale = float(np.sqrt(np.square(expected).mean()))
    if not np.isfinite(scale) or scale == 0:
        return None
    return float(np.sqrt(np.square(values - expected.reshape(values.shape)).mean())) / scale


def _shown(tokenizer: WorldTokenizer, token: int) -> str:
    return repr(tokenizer.decode([token])) if 0 < token <= tokenizer.token_count else f"({token})"
