"""Text that arrives in bytes: whole characters go out, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from mlc_rwkv_world.errors import UsageError


class TextStream:
    """Cuts a stream of bytes before the first stop string, and gives the rest as text.

    What may yet become a stop string, and the bytes of an unfinished character, are held
    back until it is known; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if any(not text for text in stop):
            raise UsageError("A stop string is empty. Leave it out, or give some text.")
        self._stop = [text.encode() for text in stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # The decoded bytes that are still remembered, and how many came before them.
        self._decoded = (0, b"")
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
    def holds_back(self) -> bool:
        """Whether bytes have come whose text was not given."""
        return bool(self._held or self._unfinished)

    def push(self, data: bytes) -> str:
        """The text that `data` completes. Sets `stopped` where it completes a stop string."""
        buffer = self._held + data
        places = [place for text in self._stop if (place := buffer.find(text)) >= 0]
        self.stopped = bool(places)
        end = min(places) if places else len(buffer) - self._possible_start(buffer)
        self._held = b"" if places else buffer[end:]
        return self._decode(buffer[:end])

    def finish(self) -> str:
        """The text that was held for a stop string which did not come.

        An unfinished character is never shown.
        """
        held, self._held = self._held, b""
        return self._decode(held)

    @property
    def _unfinished(self) -> bytes:
        return self._decoder.getstate()[0]

    def _decode(self, data: bytes) -> str:
        start, before = self._decoded
        self._decoded = (start, before + data)
        return self._decoder.decode(data)

    def _possible_start(self, buffer: bytes) -> int:
        """How many bytes at the end of `buffer` begin a stop string."""
        longest = 0
        for text in self._stop:
            for length in range(min(len(text) - 1, len(buffer)), longest, -1):
                if buffer.endswith(text[:length]):
                    longest = length
                    break
        return longest
