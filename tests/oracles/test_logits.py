"""Logits and states against two peers: BlinkDL's `rwkv`, and a PyTorch model of Hugging Face's.

That is `transformers` for RWKV-4, and `rwkv7-hf` for RWKV-7; RWKV-5 and 6 have none.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import aarch64, checkpoints
from support.peers import rwkv7_hf_logits, rwkv7_logits, rwkv_logits

import mlc_rwkv_world as world
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.runtime.cpu import missing_features

pytestmark = pytest.mark.slow

POSITIONS = 64
# Where a program is emulated, which takes its time.
FEW_POSITIONS = 12
CHUNKS = (1, 7, 64)
# After the token at each position, [V].
Logits = dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One checkpoint in the layouts that the peers read, and our engine on it in q0f32.

    What the engine gives is computed once, for both peers.
    """

    version: int
    pth: Path
    folder: Path
    engine: Any  # a world.Engine, or one elsewhere
    ids: list[int]

    @cached_property
    def whole(self) -> Logits:
        """Of prompts of several lengths, each in one prefill."""
        lengths = [n for n in (1, 2, 3, 7, 16, 17, 33, POSITIONS) if n <= len(self.ids)]
        return {n - 1: self.engine.prefill(self.ids[:n], self.engine.new_state()) for n in lengths}

    @cached_property
    def chunks(self) -> dict[int, Logits]:
        """Of a prompt in chunks, by their size."""
        return {size: self._in_chunks(size) for size in CHUNKS}

    def _in_chunks(self, size: int) -> Logits:
        state, found = self.engine.new_state(), {}
        for begin in range(0, len(self.ids), size):
            chunk = self.ids[begin : begin + size]
            found[begin + len(chunk) - 1] = self.engine.prefill(chunk, state)
        return found

    @cached_property
    def steps(self) -> Logits:
        """Of one token after another."""
        state = self.engine.new_state()
        return {at: self.engine.decode(token, state) for at, token in enumerate(self.ids)}


@dataclasses.dataclass(frozen=True)
class Peers:
    """The logits [T, V] of each peer after each of a case's tokens."""

    case: Case
    logits: dict[str, np.ndarray]

    def check(self, ours: Logits) -> None:
        for name, theirs in self.logits.items():
            tolerance = 1e-4 * max(1.0, float(np.abs(theirs).max()))
            for position, logits in ours.items():
                error = float(np.abs(logits - theirs[position]).max())
                assert error <= tolerance, f"token {position}: off from {name}'s by {error}"


def _random_ids(seed: int, count: int = POSITIONS) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(1, 65530, count)]


# By version, blocks and channels; the ranks of RWKV-7's small products.
RANKS = {"2x128": checkpoints.RANKS, "3x192": {"w": 96, "a": 32, "v": 64, "g": 160}}
PUBLISHED = {"w": 64, "a": 64, "v": 32, "g": 128}
CASES = ["4 2x64", "4 12x768", "trained", "4 2x64 haswell", "4 2x64 x86-64"]
CASES += [f"{n} {shape}" for n in ("5.0", "5.1", "5.2", "6.0") for shape in ("2x128", "3x192")]
CASES += ["7 2x128", "7 3x192", "7 12x768", "7 2x128 haswell", "7 2x128 x86-64"]
CASES += ["4 2x64 aarch64", "5.2 2x128 aarch64", "6.0 2x128 aarch64", "7 2x128 aarch64"]


def _runs(target: str) -> bool:
    """Whether this CPU runs what is compiled for some x86-64."""
    return platform.machine() == "x86_64" and not missing_features(resolve(target).cpu_features())


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    demo_checkpoint: Path,
    demo_artifact: Callable[[str], Path],
    small_library: Callable[..., Path],
) -> Iterator[Case]:
    root = tmp_path_factory.mktemp("oracle")
    # Up to 2 GB each.
    request.addfinalizer(lambda: shutil.rmtree(root))
    if request.param == "trained":
        pth = checkpoints.write_pth(root / "trained.pth", checkpoints.read_hf(demo_checkpoint))
        engine = world.load(demo_artifact("q0f32"))
        text = (
            "User: What is the capital of France?\n\nAssistant: The capital of France is Paris.\n\n"
        )
        ids = (engine.tokenizer.encode(text) * 4)[:POSITIONS]
        yield Case(4, pth, demo_checkpoint, engine, ids)
        return
    number, shape, *cpu = request.param.split()
    elsewhere = cpu == ["aarch64"]
    target = f"llvm -mcpu={cpu[0]}" if cpu else "llvm"
    if elsewhere:
        target = aarch64.TARGET
        aarch64.command()
    elif cpu and (
        platform.machine() != "x86_64" or missing_features(resolve(target).cpu_features())
    ):
        pytest.skip(f"this CPU is no {cpu[0]}")
    layers, width = map(int, shape.split("x"))
    if number == "7":
        ranks = RANKS.get(shape, PUBLISHED)
        tensors = checkpoints.random_rwkv7(layers, width, seed=layers, ranks=ranks)
        folder = checkpoints.write_fla(root / "random", tensors)
    elif number != "4":
        # The second with heads of another size.
        head_size = 64 if layers == 2 else 32
        tensors = checkpoints.random_rwkv5(
            layers, width, seed=layers, version=number, head_size=head_size
        )
        folder = root
    else:
        tensors = checkpoints.random_world(layers, width, seed=layers)
        folder = checkpoints.write_hf_safetensors(root / "random", tensors)
    pth = checkpoints.write_pth(root / "random.pth", tensors)
    reused = None
    if request.param in ("5.2 2x128", "6.0 2x128"):
        reused = small_library(int(float(number)), "q0f32")
    artifact = world.build(
        pth,
        target=target,
        quantization="q0f32",
        output=root / "dist",
        stock=False,
        reuse_lib=reused,
    )
    opened: Any = (aarch64.Engine if elsewhere else world.load)(artifact.folder)
    ids = _random_ids(layers, FEW_POSITIONS if elsewhere else POSITIONS)
    yield Case(int(float(number)), pth, folder, opened, ids)
    if elsewhere:
        opened.close()


@pytest.fixture(scope="module")
def peers(case: Case) -> Peers:
    logits = rwkv7_logits if case.version == 7 else rwkv_logits
    found = {"rwkv": logits(case.pth, case.ids)}
    if case.version == 7:
        found["rwkv7-hf"] = rwkv7_hf_logits(case.folder, case.ids)
    elif case.version == 4:
        found["transformers"] = _transformers_logits(case)
    return Peers(case, found)


def _transformers_logits(case: Case) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    # Without rescaling, which rewrites the weights at the first forward.
    model: Any = AutoModelForCausalLM.from_pretrained(
        case.folder, dtype=torch.float32, rescale_every=0
    )
    with torch.no_grad():
        output = model(torch.tensor([case.ids]), use_cache=True)
    return np.asarray(output.logits[0].float().numpy())


def test_whole_prompts(peers: Peers) -> None:
    peers.check(peers.case.whole)


@pytest.mark.parametrize("size", CHUNKS)
def test_chunks(peers: Peers, size: int) -> None:
    peers.check(peers.case.chunks[size])


def test_step_by_step(peers: Peers) -> None:
    peers.check(peers.case.steps)


def test_batch_equals_single_sequences(case: Case) -> None:
    """Four sequences of different lengths together give what each gives alone."""
    engine = case.engine
    prompts = [_random_ids(100 + n, n) for n in (3, 17, 1, 40)]
    batch = [engine.new_state() for _ in prompts]
    single = [engine.new_state() for _ in prompts]
    together = engine.prefill_batch(prompts, batch)
    alone = [engine.prefill(p, s) for p, s in zip(prompts, single, strict=True)]
    scale = max(1.0, float(np.abs(together).max()))
    np.testing.assert_allclose(together, np.stack(alone), rtol=0, atol=1e-5 * scale)
    for step in range(8):
        tokens = _random_ids(200 + step, 4)
        together = engine.decode_batch(tokens, batch)
        alone = [engine.decode(t, s) for t, s in zip(tokens, single, strict=True)]
        np.testing.assert_allclose(together, np.stack(alone), rtol=0, atol=1e-5 * scale)


def test_a_state_goes_on_from_a_file(case: Case, tmp_path: Path) -> None:
    engine, ids = case.engine, case.ids
    begun, loaded = engine.new_state(), engine.new_state()
    engine.prefill(ids[:9], begun)
    begun.save(tmp_path / "state")
    expected = engine.prefill(ids[9:20], begun)
    loaded.load(tmp_path / "state")
    assert loaded.tokens_read == 9
    np.testing.assert_array_equal(engine.prefill(ids[9:20], loaded), expected)
    np.testing.assert_array_equal(loaded.numpy(), begun.numpy())
