"""Reading needs memory for one tensor, however large the file is."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import (
    random_rwkv7,
    random_world,
    write_fla,
    write_hf_bin,
    write_hf_safetensors,
    write_pth,
)

_MEASURE = """
    import json, sys
    import numpy
    from mlc_rwkv_world.checkpoint import open_checkpoint

    def resident(field):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))

    before = resident("VmRSS")
    checkpoint = open_checkpoint(sys.argv[1])
    opened = resident("VmHWM")
    largest = 0
    for name in checkpoint.names():
        largest = max(largest, checkpoint.read(name).nbytes)
    print(json.dumps([before, opened, resident("VmHWM"), largest]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_reading_300_mb(tmp_path: Path) -> None:
    model = random_world(num_hidden_layers=50, hidden_size=256)
    seventh = random_rwkv7(num_hidden_layers=50, hidden_size=256)
    writers: list[Any] = [
        lambda path: write_pth(path / "w.pth", model),
        lambda path: write_hf_safetensors(path, model),
        lambda path: write_hf_bin(path, model, shards=2),
        lambda path: write_pth(path / "w.pth", seventh),
        lambda path: write_fla(path, seventh, one_mix=True),
    ]
    for number, write in enumerate(writers):
        path = write(tmp_path / str(number))
        files = [path] if path.is_file() else path.iterdir()
        assert sum(file.stat().st_size for file in files) > 300e6
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_MEASURE), str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        before, opened, peak, largest = json.loads(done.stdout)
        assert opened - before < 8 << 20
        assert largest == 65536 * 256 * 4
        assert peak - before < largest + (24 << 20)
        for file in [path] if path.is_file() else path.iterdir():
            file.unlink()
