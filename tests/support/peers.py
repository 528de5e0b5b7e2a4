"""Logits of peers: BlinkDL's `rwkv`, and `rwkv7-hf` in PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def rwkv_logits(pth: Path, ids: Sequence[int], strategy: str = "cpu fp32") -> np.ndarray:
    """The logits [T, V] after each token, one at a time.

    The file should hold float32: `rwkv` folds the first normalization into the embedding in the
    checkpoint's own type.
    """
    os.environ.update(RWKV_JIT_ON="0", RWKV_V7_ON="0")
    from rwkv.model import RWKV

    model = RWKV(model=str(pth), strategy=strategy, verbose=False)
    rows, state = [], None
    for token in ids:
        out, state = model.forward([token], state)
        rows.append(out.float().numpy().copy())
    return np.stack(rows)


# With RWKV_V7_ON the package holds RWKV-7 and no other, so that it wants a process of its own. It
# changes the states that it is given.
_RWKV7 = """
import json, sys
import numpy as np
from rwkv.model import RWKV

model, ids = RWKV(model=sys.argv[1], strategy=sys.argv[4]), json.loads(sys.argv[2])
rows, state = [], None
if len(sys.argv) > 5:
    import torch

    # As ChatRWKV's demo loads a tuned state, which RWKV-7 does not transpose.
    tuned, state = torch.load(sys.argv[5]), model.generate_zero_state()
    for i in range(len(tuned)):
        state[3 * i + 1] = tuned[f"blocks.{i}.att.time_state"].float().contiguous()
for token in ids:
    out, state = model.forward([token], state)
    rows.append(out.float().numpy().copy())
np.save(sys.argv[3], np.stack(rows))
"""


def rwkv7_logits(
    pth: Path, ids: Sequence[int], strategy: str = "cpu fp32", *, tuned: Path | None = None
) -> np.ndarray:
    """`rwkv_logits` of an RWKV-7, which should hold float32, from a tuned state or a new one."""
    environment = os.environ | {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "1"}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "logits.npy"
        command: list[str | Path] = [sys.executable, "-c", _RWKV7, str(pth.with_suffix(""))]
        command += [str(list(ids)), found, strategy, *([] if tuned is None else [tuned])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        logits: np.ndarray = np.load(found)
    return logits


def rwkv7_hf_logits(folder: Path, ids: Sequence[int]) -> np.ndarray:
    """The logits [T, V] of `rwkv7-hf` for a folder in fla's layout, all tokens in one call."""
    import torch
    from rwkv7_hf import RWKV7ForCausalLM

    model: Any = RWKV7ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return np.asarray(model(torch.tensor([list(ids)])).logits[0].float().numpy())


# Reads the path of a checkpoint and lists of ids, writes `greedy` of each.
_GREEDY = """
import json, sys
from rwkv.model import RWKV
from support.greedy import greedy

model, prompts = RWKV(model=sys.argv[1], strategy="cpu fp32"), json.load(sys.stdin)
print(json.dumps([greedy(model.forward, prompt) for prompt in prompts]))
"""


def rwkv_greedy(
    version: int, pth: Path, prompts: Sequence[Sequence[int]]
) -> list[tuple[list[int], int]]:
    """What `rwkv` says after each prompt, see `support.greedy`; the file should hold float32."""
    environment = os.environ | {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    environment["RWKV_V7_ON"] = "1" if version == 7 else "0"
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    # As RWKV-7's class wants it, which adds the suffix itself.
    path = pth.with_suffix("") if version == 7 else pth
    command = [sys.executable, "-c", _GREEDY, str(path)]
    done = subprocess.run(
        command, input=json.dumps(prompts), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [(ids, certain) for ids, certain in json.loads(done.stdout.splitlines()[-1])]
