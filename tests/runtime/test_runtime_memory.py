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
import json, os, sys
sys.modules["torch"] = None
os.environ["TVM_USE_RUNTIME_LIB"] = "1"
import mlc_rwkv_world
import mlc_rwkv_world.runtime
from tvm.runtime import vm
# Not getrusage, whose peak begins with the parent's.
status = lambda: open("/proc/self/status").read()
peak = lambda: 1024 * int(status().split("VmHWM:")[1].split()[0])
before = peak()
engine = mlc_rwkv_world.load(sys.argv[1], "cpu")
state = engine.new_state()
engine.prefill(list(range(1, 200)), state)
engine.decode(5, state)
print(json.dumps([before, peak()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status says the peak")
@pytest.mark.parametrize("quantization", ["q4f16_1", "q0f32"])
def test_memory_is_bounded(demo_artifact: Callable[[str], Path], quantization: str) -> None:
    folder = demo_artifact(quantization)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=True
    )
    before, peak = json.loads(done.stdout)
    tensors = ParameterIndex.read(find(folder).params).tensors.values()
    sizes = [tensor.nbytes for tensor in tensors]
    # Pages of a mapped file may stay until a tensor is packed; a second copy of all would not fit.
    assert peak - before < 1.05 * sum(sizes) + max(sizes) + 24_000_000
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert peak < 1.05 * stored + max(sizes) + PROGRAM
