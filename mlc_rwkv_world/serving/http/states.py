"""States with names, that prompts can begin from."""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.requests import Origin


class States:
    """As many states as fit into `most` and `most_bytes`; nothing is thrown out for another."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: dict[str, tuple[Origin, int]] = {}

    def keep(self, content: npt.NDArray[np.float32], tokens: int) -> dict[str, Any]:
        """Give a name to a state that has read `tokens`; a Fault where there is no room."""
        used = sum(origin.content.nbytes for origin, _ in self._kept.values())
        if len(self._kept) >= self._most or used + content.nbytes > self._most_bytes:
            raise Fault(
                429,
                f"{len(self._kept)} states are kept. Delete some first.",
                code="too_many_states",
            )
        name = f"state-{uuid.uuid4().hex[:24]}"
        self._kept[name] = Origin(name, content, tokens), int(time.time())
        return self.describe(name)

    def origin(self, name: str) -> Origin:
        """A state by its name."""
        return self._find(name)[0]

    def describe(self, name: str) -> dict[str, Any]:
        """A state as the interface shows it."""
        origin, created = self._find(name)
        return {
            "id": origin.name,
            "object": "state",
            "created": created,
            "tokens": origin.tokens,
            "bytes": origin.content.nbytes,
        }

    def all(self) -> list[dict[str, Any]]:
        """All of them, the oldest first."""
        return [self.describe(name) for name in self._kept]

    def delete(self, name: str) -> Origin:
        """Forget a state; what was begun from it goes on."""
        origin = self._find(name)[0]
        del self._kept[name]
        return origin

    def _find(self, name: str) -> tuple[Origin, int]:
        found = self._kept.get(name)
        if found is None:
            raise Fault(
                404, f"There is no state {name[:60]!r}.", param="state", code="state_not_found"
            )
        return found
