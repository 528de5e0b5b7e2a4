"""Tuned states: what they mean, how they are read, and which are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlc_rwkv_world.artifact.tuned_state import TunedRows
from mlc_rwkv_world.chat import Chat
from mlc_rwkv_world.errors import RwkvWorldError, StateError
from mlc_rwkv_world.runtime import Engine, Sampler, Sampling
from mlc_rwkv_world.runtime.tuned_file import read_tuned

FRANCE = "What is the capital of France?"
# Two rows of the trained RWKV-4, as if they were matrices [2, 2] of heads.
ROWS = TunedRows(row=1, rows=2, transposed=True)


def matrices(layers: int, heads: int, size: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(layers, heads, size, size)).astype(np.float32)


def write(path: Path, tensors: Mapping[str, npt.NDArray[np.float32]], dtype: str) -> Path:
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    torch.save({name: torch.from_numpy(value).to(kind) for name, value in tensors.items()}, path)
    return path


def names(values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
    return {f"blocks.{i}.att.time_state": value for i, value in enumerate(values)}


@pytest.mark.parametrize("transposed", [True, False])
def test_matrices_stand_among_the_rows(transposed: bool) -> None:
    """S [value, key] of each head in one piece of memory, its rows by key or by value."""
    tuned = TunedRows(row=1, rows=4, transposed=transposed)
    layers, heads, size = 2, 3, 4
    values = matrices(layers, heads, size)
    state = np.full((layers, 1 + size + 1, heads * size), 7, np.float32)
    tuned.put(values, state)
    laid = state[:, 1:-1].reshape(layers, heads, size, size)
    for value in range(size):
        for key in range(size):
            found = laid[:, :, key, value] if transposed else laid[:, :, value, key]
            np.testing.assert_array_equal(found, values[:, :, value, key])
    assert (state[:, [0, -1]] == 7).all()
    assert tuned.shape(layers, heads * size) == values.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_files_of_every_type(tmp_path: Path, dtype: str) -> None:
    values = np.round(matrices(3, 2, 4) * 16) / 16
    path = write(tmp_path / "tuned.pth", names(values), dtype)
    np.testing.assert_array_equal(read_tuned(path, values.shape), values)


def test_a_checkpoint_that_holds_one(tmp_path: Path) -> None:
    values = matrices(2, 2, 4)
    model = {"emb.weight": values[0, 0], "blocks.1.att.key.weight": values[0, 1]}
    path = write(tmp_path / "model.pth", model | names(values), "float32")
    np.testing.assert_array_equal(read_tuned(path, values.shape), values)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (names(matrices(3, 2, 4)), r"another model's: it has 3 blocks with \[2, 4, 4\], and this"),
        (names(matrices(2, 3, 4)), r"it has 2 blocks with \[3, 4, 4\]"),
        (names(matrices(2, 2, 8)), r"it has 2 blocks with \[2, 8, 8\]"),
        ({"blocks.1.att.time_state": matrices(1, 2, 4)[0]}, "it has 1 blocks"),
        ({"blocks.0.att.key.weight": matrices(1, 2, 4)[0, 0]}, "holds 'blocks.0.att.key.weight'"),
        (names(matrices(2, 2, 4)) | {"steps": matrices(1, 1, 4)[0, 0]}, "holds 'steps'"),
        (names(matrices(2, 2, 4) * np.float32("inf")), "finite"),
        ({}, "holds no"),
    ],
)
def test_what_is_no_tuned_state_of_this_model(
    tmp_path: Path, tensors: dict[str, npt.NDArray[np.float32]], message: str
) -> None:
    path = write(tmp_path / "tuned.pth", tensors, "float32")
    with pytest.raises(StateError, match=message) as error:
        read_tuned(path, (2, 2, 4, 4))
    assert str(path) in str(error.value)


def test_damage_anywhere_is_a_named_error(tmp_path: Path) -> None:
    path = write(tmp_path / "tuned.pth", names(matrices(2, 2, 4)), "float32")
    data = path.read_bytes()
    for length in range(0, len(data), 40):
        path.write_bytes(data[:length])
        with pytest.raises(RwkvWorldError):
            read_tuned(path, (2, 2, 4, 4))


@pytest.fixture
def tunable(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The trained model, as if it were of a version that begins from tuned states."""
    metadata = dataclasses.replace(engine.metadata, tuned_rows=ROWS)
    monkeypatch.setattr(engine, "metadata", metadata)
    return engine


@pytest.fixture
def tuned(engine: Engine, tmp_path: Path) -> Path:
    layers, _, width = engine.state_shape
    values = np.abs(matrices(*ROWS.shape(layers, width)[:3]))
    return write(tmp_path / "tuned.pth", names(values), "float32")


def test_versions_without_them_refuse_them(engine: Engine, tuned: Path) -> None:
    state = engine.new_state()
    with pytest.raises(StateError, match=r"tuned\.pth .* begins from no tuned state: RWKV-4"):
        state.load(tuned)
    assert state.is_new


def test_a_state_loads_one_and_has_read_nothing(
    tunable: Engine, tuned: Path, tmp_path: Path
) -> None:
    state, fresh = tunable.new_state(), tunable.new_state().numpy()
    state.load(tuned)
    assert (state.tokens_read, state.is_new) == (0, False)
    found = state.numpy()
    np.testing.assert_array_equal(found[:, [0, 3, 4]], fresh[:, [0, 3, 4]])
    assert not (found[:, 1:3] == fresh[:, 1:3]).any()
    state.save(tmp_path / "saved")
    again = tunable.new_state()
    again.load(tmp_path / "saved")
    assert not again.is_new
    np.testing.assert_array_equal(again.numpy(), found)


def test_a_new_state_stays_one_in_a_file(engine: Engine, tmp_path: Path) -> None:
    engine.new_state().save(tmp_path / "saved")
    state = engine.new_state()
    engine.decode(7, state)
    state.load(tmp_path / "saved")
    assert state.is_new


def read(engine: Engine, tuned: Path, *texts: str) -> npt.NDArray[np.float32]:
    """The content of a state that has read these after the tuned one."""
    state = engine.new_state()
    state.load(tuned)
    for text in texts:
        engine.prefill(engine.encode(text), state)
    return state.numpy()


def test_it_takes_the_place_of_a_primer(tunable: Engine, tuned: Path) -> None:
    chat = Chat(tunable, sampling=Sampling(temperature=0), max_tokens=1)
    chat.load(tuned)
    for _ in range(2):
        answer = "".join(chat.ask(FRANCE))
        expected = read(tunable, tuned, chat.template.prompt(FRANCE), f" {answer}\n\n")
        np.testing.assert_allclose(chat._state.numpy(), expected, rtol=0, atol=2e-3)
        chat.reset()


def test_it_leaves_a_system_text(
    tunable: Engine, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ">\nNo.\n\n"
    chosen = iter(tunable.tokenizer.encode(said))
    monkeypatch.setattr(Sampler, "choose", lambda *_: next(chosen))
    chat = Chat(tunable, template="g1", system="Be brief.")
    chat.load(tuned)
    assert not chat.begun
    assert "".join(chat.ask(FRANCE)) == "No."
    expected = read(tunable, tuned, "System: Be brief.\n\n", chat.template.prompt(FRANCE), said)
    np.testing.assert_allclose(chat._state.numpy(), expected, rtol=0, atol=2e-3)


def test_a_conversation_after_it_does_not_take_its_place(
    tunable: Engine, tuned: Path, tmp_path: Path
) -> None:
    chat = Chat(tunable, max_tokens=1)
    chat.load(tuned)
    list(chat.ask(FRANCE))
    chat.save(tmp_path / "talk")
    chat.load(tmp_path / "talk")
    assert chat.begun
    chat.reset()
    np.testing.assert_array_equal(chat._state.numpy(), read(tunable, tuned))
