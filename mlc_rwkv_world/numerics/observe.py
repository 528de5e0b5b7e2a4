"""Looks at every operation of a model, block by block, and finds which blocks need float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlc_rwkv_world.numerics.report import (
    FLOAT16_LARGEST,
    LARGEST,
    Need,
    Place,
    Reading,
    Report,
)
from mlc_rwkv_world.numerics.steps import RESIDUAL, Row
from mlc_rwkv_world.numerics.stepwise import Array, Rows, Seen, Stepwise, finish
from mlc_rwkv_world.numerics.subject import Subject
from mlc_rwkv_world.tokenizer import WorldTokenizer
from mlc_rwkv_world.versions import version_of

Progress = Callable[[int, int], None]


def observe(
    subject: Subject,
    stepwise: Stepwise,
    texts: Sequence[str],
    *,
    model: int = 0,
    reference: int | None = None,
    against: str | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Report, Array]:
    """A report on the subject, which is model `model` of `stepwise`, and its logits [B, V].

    Model `reference`, called `against`, is what it is compared with. Where a block leaves float16's
    range, or comes within a quarter of its end, or has a product that cannot bear inputs of 8 bits
    although it is to have them, it is computed again in float32, and what follows is seen as it
    then is.
    """
    observer = _Observer(subject, stepwise, model, reference)
    return observer.run(texts, against, progress)


class _Observer:
    def __init__(
        self, subject: Subject, stepwise: Stepwise, model: int, reference: int | None
    ) -> None:
        self.subject = subject
        self.stepwise = stepwise
        self.model = model
        self.reference = reference
        self.config = subject.arithmetic.config
        self.readings: list[Reading] = []
        self.needed: list[Need] = []
        self.leaving: list[int] = []

    def run(
        self, texts: Sequence[str], against: str | None, progress: Progress
    ) -> tuple[Report, Array]:
        stepwise, layers = self.stepwise, self.config.num_hidden_layers
        _, x, other = self._section(None, stepwise.first)
        wide = False
        for block in range(layers):
            x, wide, other = self._block(block, x, other)
            progress(block + 1, layers)
        _, logits, _ = self._section(
            None,
            lambda model: (
                stepwise.last(model, wide, x)
                if model == self.model
                else stepwise.last(model, False, other)
            ),
        )
        arithmetic = self.subject.arithmetic
        report = Report(
            model=self.subject.name,
            quantization=arithmetic.format.name,
            compute_dtype=arithmetic.compute_dtype,
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

    def _block(self, block: int, x: Array, other: Array) -> tuple[Array, bool, Array]:
        """One block: its output, whether that is of float32, and the reference's output."""
        stepwise, ours = self.stepwise, self.model
        narrow = self.subject.arithmetic.compute_dtype == "float16"
        wide = narrow and block in (self.config.fp32_layers or ())
        if narrow and not wide and x.dtype == np.float32 and _largest(x) > FLOAT16_LARGEST:
            why = f"its input is {_largest(x):.6g}, which float16 does not hold"
            self.needed.append(Need(block, why))
            wide = True
        readings, out, other = self._section(
            block,
            lambda model: (
                stepwise.block(model, block, wide, x)
                if model == ours
                else stepwise.block(model, block, False, other)
            ),
        )
        troubles = [reading for reading in readings if narrow and reading.troubled]
        troubles += [reading for reading in readings if reading.drowned]
        if troubles and not wide:
            worst = next((t for t in troubles if t.bad), troubles[0])
            self.needed.append(Need(block, worst.why()))
            if narrow:
                out, wide = finish(stepwise.block(ours, block, True, x)), True
        if narrow and wide and _largest(out) > FLOAT16_LARGEST:
            self.leaving.append(block)
        return out, wide, other

    def _section(
        self, block: int | None, start: Callable[[int], Rows]
    ) -> tuple[list[Reading], Array, Array]:
        """Reads a section of the model and, in step with it, of the reference."""
        readings: list[Reading] = []
        other = _Follower(start(self.reference)) if self.reference is not None else None
        rows = start(self.model)
        while True:
            try:
                seen = next(rows)
            except StopIteration as end:
                out: Array = end.value
                break
            expected = other.value(seen.row) if other is not None else None
            if expected is not None:
                expected = expected * self._factor(seen.row, block)
            readings.append(self._reading(block, seen, expected))
        self.readings += readings
        return readings, out, other.finish() if other is not None else out

    def _factor(self, row: Row, block: int | None) -> float:
        """What a residual that is halved more often than the reference's is smaller by."""
        halved = version_of(self.config.model_version).halved_outputs
        after = block is None and row.anchor == RESIDUAL
        if self.reference is None or not (after or f"{row.anchor}.weight" in halved):
            return 1.0
        block = self.config.num_hidden_layers if block is None else block
        counts = [
            model.arithmetic.config.halvings(block)
            for model in (
                self.stepwise.models[self.model],
                self.stepwise.models[self.reference],
            )
        ]
        return float(0.5 ** (counts[0] - counts[1]))

    def _reading(self, block: int | None, seen: Seen, expected: Array | None) -> Reading:
        dtype = str(seen.values.dtype)
        values = seen.values.astype(np.float32).reshape(len(seen.values), -1)
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
            operation=seen.row.name,
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
        prompts = self.stepwise.prompts
        if len(values) == prompts.tokens:
            prompt, position = prompts.place(row)
        else:
            # One row for each prompt: its last token.
            prompt, position = row, len(prompts.ids[row]) - 1
        token = prompts.ids[prompt][position]
        return Place(prompt, position, token, _shown(self.subject.tokenizer, token), channel)


class _Follower:
    """A reference's rows by name, read in step with the model's."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.out: Array | None = None
        self.ahead: dict[str, Array] = {}

    def value(self, row: Row) -> Array | None:
        """The reference's value for a row, float64; None where it has no such operation."""
        while row.name not in self.ahead and self.out is None:
            try:
                found = next(self.rows)
                self.ahead[found.row.name] = found.values.astype(np.float64)
            except StopIteration as end:
                self.out = end.value
        return self.ahead.pop(row.name, None)

    def finish(self) -> Array:
        return finish(self.rows) if self.out is None else self.out


def _largest(x: Array) -> float:
    return float(np.abs(np.nan_to_num(x, nan=0.0)).max())


def _error(values: Array, expected: Array) -> float | None:
    scale = float(np.sqrt(np.square(expected).mean()))
    if not np.isfinite(scale) or scale == 0:
        return None
    return float(np.sqrt(np.square(values - expected.reshape(values.shape)).mean())) / scale


def _shown(tokenizer: WorldTokenizer, token: int) -> str:
    return repr(tokenizer.decode([token])) if 0 < token <= tokenizer.token_count else f"({token})"
