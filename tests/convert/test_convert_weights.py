"""What a checkpoint's tensors become, whatever file they come in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from converting import convert_to
from support.checkpoints import (
    Tensors,
    canonical_name,
    random_rwkv7,
    random_world,
    write_fla,
    write_hf_bin,
    write_hf_safetensors,
    write_pth,
)

from mlc_rwkv_world.convert.weights import source_name
from mlc_rwkv_world.errors import CheckpointError
from mlc_rwkv_world.storage import FORMATS
from mlc_rwkv_world.storage.groups import dequantize, quantize

LAYERS = 4


@pytest.fixture(scope="module")
def world() -> Tensors:
    """Four blocks of 32 channels: one group to a row."""
    return random_world(LAYERS, 32, seed=5)


@pytest.fixture(scope="module")
def folder(world: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_safetensors(tmp_path_factory.mktemp("world") / "float32", world)


def _canonical(world: Tensors) -> Tensors:
    """The checkpoint by its canonical names, vectors as one axis."""
    return {
        canonical_name(name): values.squeeze() if 1 in values.shape else values
        for name, values in world.items()
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shards_are_the_same_bytes_from_every_layout(
    world: Tensors, tmp_path: Path, dtype: str
) -> None:
    sources = [
        write_pth(tmp_path / "model.pth", world, dtype),
        write_hf_bin(tmp_path / "bins", world, dtype, shards=3),
        write_hf_safetensors(tmp_path / "safetensors", world, dtype),
    ]
    contents = []
    for number, source in enumerate(sources):
        out = tmp_path / str(number)
        convert_to(out, source, "q4f16_1", rescale_every=2)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) == 3


@pytest.fixture(scope="module")
def rwkv7() -> Tensors:
    """Two blocks of two heads; float16 holds every value, so that all files can."""
    world = random_rwkv7(2, 64, head_size=32, seed=6)
    return {name: array.astype(np.float16).astype(np.float32) for name, array in world.items()}


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["q0f32", "q4f16_1"])
def test_rwkv7s_shards_are_the_same_bytes_from_every_layout(
    rwkv7: Tensors, tmp_path: Path, quantization: str
) -> None:
    bare = {name: array for name, array in rwkv7.items() if "blocks.0.att.v" not in name}
    bare["blocks.0.att.value.weight"] = rwkv7["blocks.0.att.value.weight"]
    sources = [
        write_pth(tmp_path / "model.pth", rwkv7, "float16"),
        write_pth(tmp_path / "bare.pth", bare, "float64"),
        write_fla(tmp_path / "fla", rwkv7, "float16"),
        write_fla(tmp_path / "old", rwkv7, "float64", shards=3, one_mix=True),
    ]
    contents = []
    for number, source in enumerate(sources):
        out = tmp_path / str(number)
        convert_to(out, source, quantization)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert all(content == contents[0] for content in contents)


@pytest.mark.parametrize("quantization", FORMATS)
def test_rwkv7s_factors_have_8_bits_at_least(
    rwkv7: Tensors, tmp_path: Path, quantization: str
) -> None:
    fmt = FORMATS[quantization]
    source = write_fla(tmp_path / "fla", rwkv7)
    stored = convert_to(tmp_path / "out", source, quantization)
    assert fmt.low_rank.bits == (8 if fmt.matrix.bits else 0)
    assert fmt.low_rank.dtype == fmt.matrix.dtype
    for name in ("blocks.1.att.v1", "blocks.1.att.g2"):
        key = f"model.{canonical_name(name)}".removesuffix("weight")
        expected = quantize(rwkv7[name].T.copy(), fmt.low_rank)
        for tensor, values in zip(fmt.low_rank.names, expected, strict=True):
            np.testing.assert_array_equal(stored[key + tensor], values)
    for name in ("x_w", "w0", "k_a", "r_k", "ln_x.bias"):
        found = stored[f"model.blocks.1.attention.{name}"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.ravel(), rwkv7[f"blocks.1.att.{name}"].ravel())


@pytest.mark.parametrize("quantization", FORMATS)
def test_every_tensor_is_stored_as_its_format_says(
    world: Tensors, folder: Path, tmp_path: Path, quantization: str
) -> None:
    fmt = FORMATS[quantization]
    stored = convert_to(tmp_path / "out", folder, quantization)
    expected = _canonical(world)
    seen = set()
    for name, values in stored.items():
        source = source_name(name)
        seen.add(source)
        weight = expected[source]
        if name.endswith(".q_weight"):
            words, scales = quantize(weight, fmt.matrix)
            np.testing.assert_array_equal(values, words)
            np.testing.assert_array_equal(stored[name.replace("q_weight", "q_scale")], scales)
            worst = np.abs(dequantize([words, scales], fmt.matrix) - weight).max()
            assert worst < np.abs(weight).max() / 2 ** (fmt.matrix.bits - 1)
        elif not name.endswith(".q_scale"):
            dtype = fmt.dtype if weight.ndim == 2 else "float32"
            assert values.dtype == dtype
            np.testing.assert_array_equal(values, weight.astype(dtype))
    assert seen == set(expected)


@pytest.mark.parametrize("quantization", ["q0f16", "q8f16_1"])
def test_rescaling_halves_two_weights_of_each_block_exactly(
    folder: Path, tmp_path: Path, quantization: str
) -> None:
    plain = convert_to(tmp_path / "plain", folder, quantization)
    rescaled = convert_to(tmp_path / "rescaled", folder, quantization, rescale_every=2)
    halved = re.compile(r"model\.blocks\.([23])\.(attention\.output|feed_forward\.value)\.")
    changed = []
    for name, values in plain.items():
        other = rescaled[name]
        if not np.array_equal(values, other):
            changed.append(name)
            assert halved.match(name), name
            assert not name.endswith("q_weight")
            # Exact but where float16 runs out of small numbers.
            normal = np.abs(values.astype(np.float32)) > 2**-13
            np.testing.assert_array_equal(other[normal] * np.float16(2), values[normal])
            assert normal.mean() > 0.9
    assert len(changed) == 4


@pytest.mark.parametrize("quantization, name", [("q0f16", "q0f16"), ("q4f16_1", "q4f16_1")])
def test_values_that_float16_cannot_hold_are_refused(
    world: Tensors, tmp_path: Path, quantization: str, name: str
) -> None:
    weight = world["blocks.1.ffn.key.weight"].copy()
    weight[3, 5] = -1e6
    source = write_pth(tmp_path / "large.pth", {**world, "blocks.1.ffn.key.weight": weight})
    with pytest.raises(
        CheckpointError,
        match=rf"large\.pth: blocks\.1\.feed_forward\.key\.weight holds 1e\+06, more than float16 "
        rf"can; {name} cannot store it\. Use a format with float32",
    ):
        convert_to(tmp_path / "out", source, quantization)
    assert not (tmp_path / "out" / "tensor-cache.json").exists()
    kept = convert_to(tmp_path / "float32", source, "q0f32")
    assert kept["model.blocks.1.feed_forward.key.weight"][3, 5] == -1e6


def test_vectors_that_float16_cannot_hold_are_stored_as_float32(
    world: Tensors, tmp_path: Path
) -> None:
    decay = np.full(32, 1e6, np.float32)
    source = write_pth(tmp_path / "model.pth", {**world, "blocks.0.att.time_decay": decay})
    stored = convert_to(tmp_path / "out", source, "q4f16_1")
    np.testing.assert_array_equal(stored["model.blocks.0.attention.time_decay"], decay)


_MEASURE = """
    import json, sys
    from pathlib import Path
    from converting import convert_to

    def resident(field):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))

    small, large, out = map(Path, sys.argv[1:4])
    # Whatever is imported on the way is imported now.
    convert_to(out / "small", small, sys.argv[4])
    before = resident("VmHWM")
    convert_to(out / "large", large, sys.argv[4])
    print(json.dumps(resident("VmHWM") - before))
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """136 MB of float16, 271 MB as float32, of which the largest tensor has 67; and those bytes."""
    world = random_world(num_hidden_layers=40, hidden_size=256)
    path = write_pth(tmp_path_factory.mktemp("deep") / "deep.pth", world, "float16")
    return path, max(values.nbytes for values in world.values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("quantization", ["q4f16_1", "q0f32"])
def test_memory_is_that_of_the_largest_tensor(
    folder: Path, deep: tuple[Path, int], tmp_path: Path, quantization: str
) -> None:
    path, largest = deep
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEASURE), folder, path, tmp_path, quantization],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The largest tensor as float32 and as it is stored, and slices of both.
    assert json.loads(done.stdout) < 1.6 * largest + (50 << 20)
