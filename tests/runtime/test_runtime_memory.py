"""How much memory a model takes on a CPU: the artifact's size, and little more at any time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.search import find

# The interpreter, numpy and TVM's runtime; PyTorch, which TVM loads where it is, does without.
PROGRAM = 120_000_000
CHILD = """
import json, math, sys
from mlc_rwkv_world.cli.start import start_light
start_light()
import mlc_rwkv_world
from mlc_rwkv_world.runtime import tvm_runtime
tvm_runtime.library()
# Not getrusage, whose peak begins with the parent's.
status = lambda: open("/proc/self/status").read()
peak = lambda: 1024 * int(status().split("VmHWM:")[1].split()[0])
before = peak()
engine = mlc_rwkv_world.load(sys.argv[1], "cpu")
state = engine.new_state()
engine.prefill(list(range(1, 200)), state)
engine.decode(5, state)
print(json.dumps([before, peak(), 4 * math.prod(engine._pool.tensor.shape)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status says the peak")
@pytest.mark.parametrize("quantization", ["q4f16_1", "q0f32"])
@pytest.mark.parametrize(
    "trained", ["demo_artifact", pytest.param("demo7_artifact", marks=pytest.mark.slow)]
)
def test_memory_is_bounded(request: pytest.FixtureRequest, trained: str, quantization: str) -> None:
    folder = request.getfixturevalue(trained)(quantization)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=True
    )
    before, peak, pool = json.loads(done.stdout)
    tensors = ParameterIndex.read(find(folder).params).tensors.values()
    sizes = [tensor.nbytes for tensor in tensors]
    # Pages of a mapped file may stay until a tensor is packed; a second copy of all would not fit.
    assert peak - before < 1.05 * sum(sizes) + max(sizes) + pool + 24_000_000
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert peak < 1.05 * stored + max(sizes) + pool + PROGRAM


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status says the size")
def test_a_model_that_is_gone_leaves_no_memory(demo_artifact: Callable[[str], Path]) -> None:
    """Loading a second model, whose tensors have other sizes, takes back what the first left."""
    child = """
import json, sys
from mlc_rwkv_world.cli.start import start_light
start_light()
import mlc_rwkv_world
from mlc_rwkv_world.runtime.device import release_unused
status = lambda: open("/proc/self/status").read()
size = lambda: 1024 * int(status().split("RssAnon:")[1].split()[0])
def use(path):
    engine = mlc_rwkv_world.load(path, "cpu")
    engine.prefill([1, 2, 3], engine.new_state())
    return size()
use(sys.argv[2])
release_unused()
before, first = size(), use(sys.argv[1])
second = use(sys.argv[2])
release_unused()
print(json.dumps([before, first, second, size()]))
"""
    large, small = demo_artifact("q0f32"), demo_artifact("q4f16_1")
    done = subprocess.run(
        [sys.executable, "-c", child, str(large), str(small)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, first, second, after = json.loads(done.stdout)
    assert first - before > 4_000_000
    assert second - before < 0.6 * (first - before)
    assert after - before < 0.2 * (first - before)
