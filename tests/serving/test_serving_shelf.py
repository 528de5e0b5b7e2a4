"""A folder keeps checkpoints between two runs of a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlc_rwkv_world.runtime import Engine
from mlc_rwkv_world.serving.cache import Ids, StateCache
from mlc_rwkv_world.serving.shelf import Folder

pytestmark = pytest.mark.slow


def ids(*values: int) -> Ids:
    return np.array(values, np.int32)


def state_of(engine: Engine, text: str) -> tuple[Ids, np.ndarray]:
    state, read = engine.new_state(), engine.encode(text)
    engine.prefill(read, state)
    return read, state.numpy()


def shelf(folder: Path, engine: Engine, said: list[str], **more: int) -> Folder:
    return Folder(folder, engine, said.append, **more)


def test_a_folder_outlives_a_process(engine: Engine, tmp_path: Path) -> None:
    said: list[str] = []
    first = shelf(tmp_path, engine, said)
    cache = StateCache(1 << 24, first)
    read, kept = state_of(engine, "One, two, three")
    cache.put(read, kept)
    cache.put(read, kept, "a state of this process")
    first.close()
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert len(list(folder.iterdir())) == 1
    second = shelf(tmp_path, engine, said)
    again = StateCache(1 << 24, second)
    length, found = again.find(np.append(read, np.int32(5)))
    assert length == len(read) and found is not None
    assert np.array_equal(found, kept)
    assert len(again) == 1
    second.close()
    assert not said


def test_a_damaged_file_is_passed_over(engine: Engine, tmp_path: Path) -> None:
    first = shelf(tmp_path, engine, [])
    read, kept = state_of(engine, "One, two, three")
    first.keep("", read, kept)
    first.close()
    (path,) = next(tmp_path.iterdir()).iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (path.parent / "other.state").write_bytes(b"nothing")
    second = shelf(tmp_path, engine, [])
    cache = StateCache(1 << 24, second)
    assert cache.find(np.append(read, np.int32(5))) == (0, None)
    assert not path.exists()
    second.close()


def test_another_models_states_are_not_found(
    engine: Engine, thinker: Engine, tmp_path: Path
) -> None:
    first = shelf(tmp_path, engine, [])
    first.keep("", *state_of(engine, "One, two, three"))
    first.close()
    other = shelf(tmp_path, thinker, [])
    assert not list(other.kept())
    other.close()


def test_a_folder_does_not_grow_for_ever(engine: Engine, tmp_path: Path) -> None:
    kept = state_of(engine, "One")[1]
    small = shelf(tmp_path, engine, [], most_bytes=3 * kept.nbytes + 4096)
    for number in range(6):
        small.keep("", ids(1, number), kept)
    small.close()
    assert 1 <= len(list(next(tmp_path.iterdir()).iterdir())) <= 3


def test_a_disk_that_fails_is_said_once(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    one = shelf(tmp_path, engine, said)
    next(tmp_path.iterdir()).rmdir()
    kept = state_of(engine, "One")[1]
    for number in range(3):
        one.keep("", ids(1, number), kept)
    one.close()
    assert len(said) == 1 and "not written any more" in said[0]
