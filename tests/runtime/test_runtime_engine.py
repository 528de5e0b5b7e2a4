"""The engine on the trained model: chunks, batches, states, errors."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlc_rwkv_world.errors import NotFoundError, StateError, UsageError
from mlc_rwkv_world.runtime import Engine, State, load

Array = npt.NDArray[Any]


def random_ids(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).integers(1, 65530, count)


def close(actual: Array, expected: Array, tolerance: float = 1e-4) -> None:
    scale = max(1.0, float(np.abs(expected[np.abs(expected) < 1e29]).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_reading_at_once_in_pieces_and_by_steps_is_the_same(engine: Engine) -> None:
    ids = random_ids(0, 40)
    whole, pieces, steps = (engine.new_state() for _ in range(3))
    expected = engine.prefill(ids, whole)
    assert expected.shape == (65536,)
    assert expected.dtype == np.float32
    for start in range(0, 40, 7):
        logits = engine.prefill(ids[start : start + 7], pieces)
    close(logits, expected)
    for token in ids:
        logits = engine.decode(int(token), steps)
    close(logits, expected)
    for state in (pieces, steps):
        close(state.numpy(), whole.numpy())
        assert state.tokens_read == whole.tokens_read == 40


def test_prompts_longer_than_a_chunk(engine: Engine) -> None:
    size = engine.metadata.prefill_chunk_size
    ids = random_ids(1, 2 * size + 3)
    at_once, by_hand = engine.new_state(), engine.new_state()
    logits = engine.prefill(ids, at_once)
    for start in range(0, len(ids), size):
        expected = engine.prefill(ids[start : start + size], by_hand)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(at_once.numpy(), by_hand.numpy())


def test_batches_equal_single_sequences(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sequences than one call takes, and more tokens than one chunk."""
    monkeypatch.setattr(engine, "metadata", replace(engine.metadata, max_batch_size=8))
    lengths = [1, 700, 3, 40, 513, 2, 1, 9, 30, 5, 64]
    assert sum(lengths) > 2 * engine.metadata.prefill_chunk_size
    sequences = [random_ids(10 + i, length) for i, length in enumerate(lengths)]
    batch = [engine.new_state() for _ in lengths]
    single = [engine.new_state() for _ in lengths]
    logits = engine.prefill_batch(sequences, batch)
    expected = [engine.prefill(ids, s) for ids, s in zip(sequences, single, strict=True)]
    close(logits, np.stack(expected))
    for step in range(3):
        tokens = random_ids(100 + step, len(lengths))
        logits = engine.decode_batch(tokens, batch)
        expected = [engine.decode(int(t), s) for t, s in zip(tokens, single, strict=True)]
        assert logits.shape == (len(lengths), 65536)
        close(logits, np.stack(expected))
    for one, other in zip(batch, single, strict=True):
        close(one.numpy(), other.numpy())
        assert one.tokens_read == other.tokens_read


def test_eight_quantized_sequences_at_once(demo_artifact: Callable[[str], Path]) -> None:
    """The kernels that multiply packed weights with eight rows say what those for one row say."""
    engine = load(demo_artifact("q4f16_1"), "cpu")
    countries = ("France", "Japan", "Italy", "Spain", "Germany", "China", "Russia", "Egypt")
    prompts = [
        engine.encode(f"User: What is the capital of {country}?\n\nAssistant:")
        for country in countries
    ]
    states = [engine.new_state() for _ in prompts]
    logits = engine.prefill_batch(prompts, states)
    together: list[list[int]] = [[] for _ in prompts]
    for _ in range(8):
        tokens = logits.argmax(axis=1)
        for answer, token in zip(together, tokens, strict=True):
            answer.append(int(token))
        logits = engine.decode_batch(tokens, states)
    for prompt, answer, state in zip(prompts, together, states, strict=True):
        alone = engine.new_state()
        one = engine.prefill(prompt, alone)
        said = []
        for _ in range(8):
            said.append(int(one.argmax()))
            one = engine.decode(said[-1], alone)
        assert said == answer
        close(alone.numpy(), state.numpy())


def test_the_argmax_of_a_question_begins_its_answer(engine: Engine) -> None:
    ids = engine.encode("User: What is the capital of France?\n\nAssistant:")
    best = int(engine.prefill(ids, engine.new_state()).argmax())
    assert engine.tokenizer.id_to_bytes(best) == b" The"


def test_copies_are_independent(engine: Engine) -> None:
    state = engine.new_state()
    engine.prefill([1, 2, 3], state)
    copy = state.copy()
    before = state.numpy()
    logits = engine.decode(4, copy)
    np.testing.assert_array_equal(state.numpy(), before)
    assert (state.tokens_read, copy.tokens_read) == (3, 4)
    np.testing.assert_array_equal(engine.decode(4, state), logits)
    copy.reset()
    np.testing.assert_array_equal(copy.numpy(), engine.new_state().numpy())
    assert copy.tokens_read == 0


def test_fresh_state_is_that_of_rwkv4(engine: Engine) -> None:
    state = engine.new_state().numpy()
    assert state.shape == engine.state_shape == (4, 5, 128)
    assert (state[:, 3] == np.float32(-1e30)).all()
    assert (state[:, [0, 1, 2, 4]] == 0).all()


def test_saved_states_continue_to_the_bit(engine: Engine, tmp_path: Path) -> None:
    state, other = engine.new_state(), engine.new_state()
    engine.prefill(random_ids(3, 20), state)
    state.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert other.tokens_read == 20
    for token in random_ids(4, 10):
        expected = engine.decode(int(token), state)
        np.testing.assert_array_equal(engine.decode(int(token), other), expected)


def test_another_builds_state_is_refused(
    engine: Engine, demo_artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    engine.new_state().save(tmp_path / "state")
    other = load(demo_artifact("q4f16_1")).new_state()
    before = other.numpy()
    with pytest.raises(StateError, match="belongs to the model"):
        other.load(tmp_path / "state")
    np.testing.assert_array_equal(other.numpy(), before)
    with pytest.raises(NotFoundError):
        other.load(tmp_path / "none")


@pytest.mark.parametrize("function", ["rwkv_world_prefill", "rwkv_world_decode"])
def test_a_read_that_fails_leaves_the_state_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """Ctrl-C after the compiled function has written, before anybody could note it."""
    real = engine._functions[function]

    def interrupted(*arguments: Any) -> Any:
        real(*arguments)
        raise KeyboardInterrupt

    state = engine.new_state()
    engine.prefill(random_ids(5, 9), state)
    before = state.numpy()
    monkeypatch.setitem(engine._functions, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        if function == "rwkv_world_decode":
            engine.decode(7, state)
        else:
            engine.prefill(random_ids(6, 600), state)
    np.testing.assert_array_equal(state.numpy(), before)
    assert state.tokens_read == 9
    monkeypatch.undo()
    assert np.isfinite(engine.decode(7, state)).all()


def test_results_are_not_overwritten_by_later_ones(engine: Engine) -> None:
    state = engine.new_state()
    first = engine.decode(1, state)
    kept = first.copy()
    for token in range(2, 20):
        engine.decode(token, state)
    np.testing.assert_array_equal(first, kept)


def test_threads_take_turns(engine: Engine) -> None:
    def run(seed: int) -> Array:
        state = engine.new_state()
        for token in random_ids(seed, 10):
            logits = engine.decode(int(token), state)
        return logits

    expected = [run(seed) for seed in range(4)]
    results: dict[int, Array] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: results.update({seed: run(seed)}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(results[seed], expected[seed])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "at least one token"),
        ([[1, 2]], "at least one token"),
        ([1.5], "integers"),
        ([[1], [2, 3]], "one sequence of integers"),
        ("abc", "at least one token"),
        (["1"], "integers"),
        ([2**70], "integers"),
        ([True], "integers"),
        (None, "at least one token"),
        ([-1], "-1 is not in 0..65535"),
        ([65536], "65536 is not in"),
    ],
)
def test_bad_ids_are_refused(engine: Engine, ids: Any, message: str) -> None:
    state = engine.new_state()
    with pytest.raises(UsageError, match=message):
        engine.prefill(ids, state)
    assert state.tokens_read == 0


def test_bad_states_are_refused(engine: Engine, demo_artifact: Callable[[str], Path]) -> None:
    state = engine.new_state()
    with pytest.raises(UsageError, match="given twice"):
        engine.decode_batch([1, 2], [state, state])
    with pytest.raises(UsageError, match="2 sequences were given with 1 states"):
        engine.prefill_batch([[1], [2]], [state])
    with pytest.raises(UsageError, match=r"is none\. Make one with new_state"):
        engine.decode(1, np.zeros(engine.state_shape, np.float32))  # type: ignore[arg-type]
    foreign = State(load(demo_artifact("q4f16_1")))
    with pytest.raises(StateError, match="another engine"):
        engine.decode(1, foreign)


def test_unaligned_and_bfloat16_shards_load(
    engine: Engine, demo_artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    """What stock's writer leaves: tensors at any offset, float32 kept as its upper half."""
    import hashlib
    import json

    folder = tmp_path / "stock"
    shutil.copytree(demo_artifact("q0f32"), folder)
    path = folder / "params/tensor-cache.json"
    index = json.loads(path.read_text())
    rounded = 0
    for shard in index["records"]:
        file = folder / "params" / shard["dataPath"]
        data = file.read_bytes()
        written = b"\0\0\0\0"
        for tensor in shard["records"]:
            start = tensor["byteOffset"]
            content = data[start : start + tensor["nbytes"]]
            if "ln" in tensor["name"]:
                words = np.frombuffer(content, np.uint32)
                content = (words >> 16).astype(np.uint16).tobytes()
                rounded += int((words & 0xFFFF).any())
                tensor["format"] = "f32-to-bf16"
            tensor["byteOffset"], tensor["nbytes"] = len(written), len(content)
            written += content
        file.write_bytes(written)
        shard["nbytes"], shard["md5sum"] = len(written), hashlib.md5(written).hexdigest()
    path.write_text(json.dumps(index))
    stock = load(folder)
    assert stock.identity != engine.identity
    ids = random_ids(8, 12)
    logits = stock.prefill(ids, stock.new_state())
    expected = engine.prefill(ids, engine.new_state())
    # Only the layer norms were rounded, to eight bits.
    close(logits, expected, 0.05 if rounded else 0)


def test_a_gpu_that_is_not_there(demo_artifact: Callable[[str], Path]) -> None:
    from mlc_rwkv_world.errors import TargetError

    with pytest.raises(TargetError, match="no device cuda:99"):
        load(demo_artifact("q0f32"), "cuda:99")
    with pytest.raises(UsageError, match="'gpu' is no device"):
        load(demo_artifact("q0f32"), "gpu")
