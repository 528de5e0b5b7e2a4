"""Text that arrives in bytes: whole characters go out, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from mlc_rwkv_world.artifact.stopping import AT_THE_END, StopRule
from mlc_rwkv_world.errors import UsageError


class TextStream:
    """Cuts a stream of bytes where the strings of a rule say, and gives the rest as text.

    What may yet become a stop string or the end of a thought, and the bytes of an unfinished
    character, are held back until it is known; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, rule: StopRule = AT_THE_END) -> None:
        thought = rule.thought
        inside = thought.stop if thought is not None else ()
        if not all((*rule.strings, *inside)):
            raise UsageError("A stop string is empty. Leave it out, or give some text.")
        self._answer_stops = _encoded(rule.strings)
        # What the answer follows, as long as that has not come; other strings count until then.
        self._mark = thought.mark.encode() if thought is not None else b""
        self._mark_is_next = thought is not None and not thought.closing
        self._stops = _encoded(inside) if self._mark else self._answer_stops
        # Whether the thought has ended and only space has come since.
        self._between = False
        # The decoded bytes that are still remembered, and how many came before them.
        self._decoded = (0, b"")
        # The bytes at its end that begin a character.
        self._unfinished = b""
        self._held = b""
        self.stopped = False

    @property
    def end(self) -> int:
        """How many bytes of the stream have become text that was given."""
        start, data = self._decoded
        return start + len(data) - len(self._unfinished)

    def given(self, start: int) -> bytes:
        """The bytes from `start` on, which was not forgotten, whose text was given."""
        first, data = self._decoded
        return data[start - first : self.end - first]

    def forget(self, end: int) -> None:
        """Spare the memory of the bytes before `end`."""
        start, data = self._decoded
        self._decoded = (end, data[end - start :])

    @property
    def in_thought(self) -> bool:
        """Whether the thought before the answer has not ended."""
        return bool(self._mark)

    @property
    def holds_back(self) -> bool:
        """Whether bytes have come whose text was not given."""
        return bool(self._held or self._unfinished)

    def push(self, data: bytes) -> str:
        """The text that `data` completes. Sets `stopped` where it completes a stop string."""
        buffer = self._held + data
        start = self._answer_start(buffer)
        places = [place for text in self._stops if (place := buffer.find(text, start)) >= 0]
        self.stopped = bool(places)
        end = min(places) if places else len(buffer) - self._possible_start(buffer[start:])
        self._held = b"" if places else buffer[end:]
        return self._decode(buffer[:end])

    def finish(self) -> str:
        """The text that was held for a stop string which did not come.

        An unfinished character is never shown.
        """
        held, self._held = self._held, b""
        return self._decode(held)

    def _decode(self, data: bytes) -> str:
        start, before = self._decoded
        self._decoded = (start, before + data)
        data = self._unfinished + data
        text, whole = codecs.utf_8_decode(data, "replace")
        self._unfinished = data[whole:]
        return text

    def _answer_start(self, buffer: bytes) -> int:
        """Where in `buffer` the strings of `_stops` begin to count.

        That is behind the mark that ends a thought, and behind the space that follows it.
        """
        start = 0
        if self._mark:
            place = self._place_of_mark(buffer)
            if place is None:
                return 0
            start = place
            self._mark, self._stops = b"", self._answer_stops
        if self._between:
            start += len(buffer[start:]) - len(buffer[start:].lstrip())
            self._between = start == len(buffer)
        return start

    def _place_of_mark(self, buffer: bytes) -> int | None:
        """Where the mark ends, None where it has not come."""
        mark, place = self._mark, buffer.find(self._mark)
        if self._mark_is_next and not mark.startswith(buffer[: len(mark)]):
            # The model left it out, and answers.
            return 0
        stops = [found for text in self._stops if (found := buffer.find(text)) >= 0]
        if place < 0 or min(stops, default=place) < place:
            return None
        self._between = True
        return place + len(mark)

    def _possible_start(self, buffer: bytes) -> int:
        """How many bytes at the end of `buffer` begin a stop string or the mark."""
        longest = 0
        for text in (*self._stops, self._mark):
            for length in range(min(len(text) - 1, len(buffer)), longest, -1):
                if buffer.endswith(text[:length]):
                    longest = length
                    break
        return longest


def _encoded(strings: Iterable[str]) -> list[bytes]:
    return [text.encode() for text in strings]
