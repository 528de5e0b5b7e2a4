"""The recurrent state: all that the model remembers of what it has read.

A state is a value. It is one slot of the engine's pool and the number of tokens that it has read;
it can be copied, saved, loaded and compared by content.

A call writes what a state becomes to another slot, which then becomes the state's in one
assignment. A read that fails or is interrupted, wherever that happens, therefore leaves the state
as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.artifact.tuned_state import TunedRows
from mlc_rwkv_world.errors import StateError
from mlc_rwkv_world.runtime.pool import Slot
from mlc_rwkv_world.runtime.state_file import StateFile
from mlc_rwkv_world.runtime.tuned_file import is_torch_file, read_tuned

TOKENS_READ = "tokens_read"


class Owner(Protocol):
    """The engine that makes and reads a state, as far as the state needs one."""

    @property
    def identity(self) -> str:
        """The identity of its model."""

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The shape [L, R, D] of a state."""

    @property
    def tuned_rows(self) -> TunedRows | None:
        """Where a tuned state stands in a state; None where the model takes none."""

    def fresh_slot(self) -> Slot:
        """The slot with the content of a new state."""

    def read_slot(self, slot: Slot) -> npt.NDArray[np.float32]:
        """A copy of a slot's content, float32 [L, R, D]."""

    def slot_of(self, content: npt.NDArray[np.float32]) -> Slot:
        """A slot with this content, float32 [L, R, D]."""


class State:
    """What one sequence has left behind. Made by `Engine.new_state`."""

    def __init__(self, engine: Owner) -> None:
        self._engine = engine
        self._content: tuple[Slot, int] = (engine.fresh_slot(), 0)

    @property
    def slot(self) -> Slot:
        """The slot that holds the content, which nobody may write."""
        return self._content[0]

    @property
    def tokens_read(self) -> int:
        """How many tokens this state has read since it was new."""
        return self._content[1]

    @property
    def is_new(self) -> bool:
        """Whether this is as a new state is: nothing was read, and no tuned state loaded."""
        return self.slot is self._engine.fresh_slot()

    @property
    def engine(self) -> Owner:
        """The engine that made this state, and the only one that can use it."""
        return self._engine

    def numpy(self) -> npt.NDArray[np.float32]:
        """A copy of the content, float32 [L, R, D]."""
        return self._engine.read_slot(self.slot)

    def copy(self) -> State:
        """An independent state with the same content."""
        other = State(self._engine)
        other.assign(self)
        return other

    def assign(self, other: State) -> None:
        """Take over the content of `other`, a state of the same engine."""
        self._content = other._content

    def reset(self) -> None:
        """Forget everything, as a new state."""
        self.assign(State(self._engine))

    def save(self, path: str | Path) -> None:
        """Write the state and its model's identity to `path`, whole or not at all.

        Raises UsageError where a file that is no state is there, StorageError where it cannot be
        written.
        """
        self.to_file().write(expanded(path))

    def load(self, path: str | Path) -> None:
        """Replace the content by that of a file which `save` wrote with the same model.

        A tuned state for this model (`.pth`) is loaded too: a state that has read nothing. Raises
        NotFoundError, and StateError where the file is damaged or another model's; the state is
        then unchanged.
        """
        self.from_file(self.read_file(expanded(path)))

    def to_file(self) -> StateFile:
        """The content as `save` writes it."""
        notes = {TOKENS_READ: str(self.tokens_read)}
        return StateFile(self._engine.identity, self.numpy(), notes=notes)

    def read_file(self, path: Path) -> StateFile:
        """The checked content of a file for this model; the state is unchanged."""
        engine = self._engine
        if is_torch_file(path):
            return StateFile(engine.identity, self._tuned(path))
        file = StateFile.read(path, model=engine.identity, shape=engine.state_shape)
        file.count(TOKENS_READ)
        return file

    def from_file(self, file: StateFile) -> None:
        """Replace the content by that of `file`, which `read_file` gave."""
        engine, tokens_read = self._engine, file.count(TOKENS_READ)
        fresh = engine.fresh_slot()
        if tokens_read == 0 and np.array_equal(file.state, engine.read_slot(fresh)):
            self.commit(fresh, 0)
        else:
            self.commit(engine.slot_of(file.state), tokens_read)

    def commit(self, slot: Slot, tokens_read: int) -> None:
        """Make a slot the content: one assignment, so that nothing can come between."""
        self._content = (slot, tokens_read)

    def _tuned(self, path: Path) -> npt.NDArray[np.float32]:
        """A new state's content [L, R, D] with the tuned state in the file `path`."""
        engine = self._engine
        tuned = engine.tuned_rows
        if tuned is None:
            raise StateError(
                f"{path} is a file of torch, and this model begins from no tuned state: RWKV-4 has "
                "none. Give a file that /save or State.save wrote."
            )
        layers, _, width = engine.state_shape
        content = engine.read_slot(engine.fresh_slot())
        tuned.put(read_tuned(path, tuned.shape(layers, width)), content)
        return content
