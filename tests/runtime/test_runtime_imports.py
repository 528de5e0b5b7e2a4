"""What running a model imports, and that TVM may come later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHILD = """
import sys
from mlc_rwkv_world.cli.start import start_light
start_light()
import numpy as np
import mlc_rwkv_world as world
engine = world.load(sys.argv[1], "cpu")
state = engine.new_state()
before = engine.decode(7, state).copy()
assert "tvm" not in sys.modules and sys.modules["torch"] is None
import tvm
assert not tvm.base._RUNTIME_ONLY
# Tensors made before and after have other classes.
copy, again = state.copy(), world.load(sys.argv[1], "cpu").new_state()
np.testing.assert_array_equal(again.engine.decode(7, again), before)
one, two = engine.decode_batch([8, 9], [state, copy])
np.testing.assert_array_equal(again.engine.decode(8, again), one)
copy.save("saved.state")
fresh = engine.new_state()
fresh.load("saved.state")
np.testing.assert_array_equal(fresh.numpy(), copy.numpy())
print("done")
"""


@pytest.mark.slow
def test_models_run_without_tvm_and_beside_it(
    demo_artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CHILD, str(demo_artifact("q4f16_1").resolve())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
