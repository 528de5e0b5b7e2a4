"""How long work tells what it does."""

from __future__ import annotations


class Reporter:
    """Hears of stages and progress; this one keeps silent, and others override it."""

    def stage(self, text: str) -> None:
        """A new stage of the work begins."""

    def progress(self, done: int, total: int, what: str) -> None:
        """`done` of `total` units of the current stage are through; `what` is at hand."""
