"""State files: what they keep, and that no damaged or foreign one is taken."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlc_rwkv_world.errors import NotFoundError, RwkvWorldError, StateError, StorageError
from mlc_rwkv_world.runtime.state_file import StateFile

SHAPE = (2, 5, 64)
MODEL = "ab" * 32


def example() -> StateFile:
    state = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    extra: dict[str, np.ndarray] = {
        "ids": np.arange(3, dtype=np.int32),
        "none": np.empty(0, np.float64),
    }
    return StateFile(MODEL, state, extra, {"turns": "2"})


def read(path: Path) -> StateFile:
    return StateFile.read(path, model=MODEL, shape=SHAPE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    example().write(path)
    return path


def test_everything_comes_back_to_the_bit(path: Path) -> None:
    file, expected = read(path), example()
    np.testing.assert_array_equal(file.state, expected.state)
    assert file.extra.keys() == expected.extra.keys()
    for name, value in expected.extra.items():
        np.testing.assert_array_equal(file.extra[name], value)
        assert file.extra[name].dtype == value.dtype
    assert file.notes == {"turns": "2"}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        read(tmp_path / "none")


def test_another_models_state_is_refused(path: Path) -> None:
    with pytest.raises(StateError, match="belongs to the model"):
        StateFile.read(path, model="cd" * 32, shape=SHAPE)
    with pytest.raises(StateError, match="float32"):
        StateFile.read(path, model=MODEL, shape=(2, 5, 32))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StateError, match="size"):
        read(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"is not a regular file\. Give a file that /save"):
        read(tmp_path)


@pytest.mark.parametrize("place", ["/", "."])
def test_a_state_is_not_saved_over_a_folder(place: str) -> None:
    with pytest.raises(StorageError, match="cannot be written: Is a directory"):
        example().write(Path(place))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StateError, match="is not a regular file"):
        read(tmp_path / "pipe")


def test_a_name_that_no_file_has(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is no name of a file"):
        read(tmp_path / "a\0b")


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file({"state": np.zeros(SHAPE, np.float32)}, path)
    with pytest.raises(StateError, match="not one that holds a state"):
        read(path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    state = np.zeros(SHAPE, np.float32)
    state[1, 2, 3] = np.nan
    StateFile(MODEL, state).write(path)
    with pytest.raises(StateError, match="not finite"):
        read(path)


def test_a_later_version_says_so(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"version":"1"', b'"version":"7"'))
    with pytest.raises(StateError, match="version '7'"):
        read(path)


def test_truncation_anywhere_is_a_named_error(path: Path) -> None:
    data = path.read_bytes()
    for length in {*range(0, 64), *range(64, len(data), max(1, len(data) // 136))}:
        path.write_bytes(data[:length])
        with pytest.raises(StateError, match="state"):
            read(path)


@pytest.mark.slow
def test_every_flipped_bit_is_found(path: Path) -> None:
    data = path.read_bytes()
    rng = random.Random(0)
    for position in rng.sample(range(len(data) * 8), 500):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            file = read(path)
        except RwkvWorldError:
            continue
        # The header's padding and its spelling of a key may change without a meaning.
        np.testing.assert_array_equal(file.state, example().state)
        assert file.notes == example().notes
