"""Formats that no kernel was written for: one line each, and models build, run and are judged."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from support import checkpoints
from support.modules import small_config
from support.values import run

import mlc_rwkv_world as world
from mlc_rwkv_world.cli.bench import work
from mlc_rwkv_world.compiler import arithmetic
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.numerics.inspection import inspect
from mlc_rwkv_world.numerics.perplexity import predict
from mlc_rwkv_world.numerics.subject import open_subject
from mlc_rwkv_world.storage import FORMATS, Format, Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = pytest.mark.slow

OWN = {
    fmt.name: fmt
    for fmt in (
        Format("q4f16_128", Stored.symmetric(4, "float16", group=128), "float16"),
        Format("q8f32_row", Stored.symmetric(8, "float32", group=0), "float32"),
    )
}
LAYERS, WIDTH, POSITIONS = 2, 128, 12
TEXT = "User: What is the capital of France?\n\nAssistant: Paris.\n\n"
# float32's rounding, of logits of order 1.
EXACT = 1e-4


@pytest.fixture(autouse=True, scope="module")
def own_formats() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, fmt in OWN.items():
            patch.setitem(FORMATS, name, fmt)
        yield


@pytest.fixture(scope="module")
def tensors() -> checkpoints.Tensors:
    return checkpoints.random_world(LAYERS, WIDTH, seed=6)


@pytest.fixture(scope="module", params=OWN)
def fmt(request: pytest.FixtureRequest) -> Format:
    return OWN[request.param]


@pytest.fixture(scope="module")
def built(
    fmt: Format, tensors: checkpoints.Tensors, tmp_path_factory: pytest.TempPathFactory
) -> world.Artifact:
    folder = tmp_path_factory.mktemp(fmt.name)
    source = checkpoints.write_pth(folder / "random.pth", tensors)
    return world.build(source, target="llvm", quantization=fmt.name, output=folder / "built")


def test_logits_are_those_of_the_same_weights(
    fmt: Format, built: world.Artifact, tensors: checkpoints.Tensors
) -> None:
    """By steps, by steps of a batch, and by prompts."""
    kept = {
        name: dequantize(quantize(tensor, fmt.matrix), fmt.matrix)
        if name.endswith("weight") and tensor.ndim == 2
        else tensor
        for name, tensor in tensors.items()
    }
    ids = [int(i) for i in np.random.default_rng(1).integers(1, 65530, POSITIONS)]
    _, exact = run(kept, ids)
    engine = world.load(built.folder, "cpu")
    one, batch = engine.new_state(), [engine.new_state() for _ in range(3)]
    steps = [engine.decode(token, one) for token in ids]
    together = [engine.decode_batch([token] * 3, batch)[2] for token in ids]
    prompts = [engine.prefill(ids[:end], engine.new_state()) for end in range(1, POSITIONS + 1)]
    for found in (steps, together, prompts):
        assert np.abs(np.stack(found) - exact).max() < EXACT
    _, unrounded = run(tensors, ids)
    assert np.abs(exact - unrounded).max() > 10 * EXACT


def test_shards_hold_what_the_format_says(fmt: Format, built: world.Artifact) -> None:
    records = json.loads((built.folder / "params" / "tensor-cache.json").read_text("utf-8"))
    found = {
        record["name"]: (tuple(record["shape"]), record["dtype"])
        for shard in records["records"]
        for record in shard["records"]
    }
    for tensor in fmt.matrix.tensors(4 * WIDTH, WIDTH):
        name = f"model.blocks.0.feed_forward.key.{tensor.name}"
        assert found[name] == (tensor.shape, tensor.dtype)


def test_it_is_judged(fmt: Format, built: world.Artifact) -> None:
    engine = world.load(built.folder, "cpu")
    found = predict(engine, TEXT)
    # A random model knows nothing, and says so with about as many bits as a token needs.
    assert 15 < found.nats / np.log(2) / found.tokens < 18
    # Thirteen squares in a block, and the head.
    read, operations = work(engine)
    assert operations == 2 * (13 * LAYERS * WIDTH**2 + engine.metadata.vocab_size * WIDTH)
    assert fmt.matrix.bits / 8 < 2 * read / operations < fmt.matrix.bits / 8 + 0.1
    report = inspect(open_subject(built.folder, compute_dtype="float32"), texts=[TEXT])
    assert report.library is not None and report.library.fault is None
    assert report.library.arithmetic == "float32"
    assert report.library.difference is not None and report.library.difference < EXACT


def test_models_that_do_not_divide_are_refused() -> None:
    config = small_config(hidden_size=64, intermediate_size=256)
    with pytest.raises(UsageError, match=r"q4f16_128 stores .* of 128; rows of 64 do not divide"):
        parameters(config, OWN["q4f16_128"])


def test_bytes_are_not_promised() -> None:
    for fmt in OWN.values():
        assert set(arithmetic.resolve("auto", resolve("llvm"), fmt, "float32").values()) == {
            "float32"
        }
        with pytest.raises(UsageError, match=f"{fmt.name} is not multiplied as bytes"):
            arithmetic.resolve("int8", resolve("llvm"), fmt, "float32")
