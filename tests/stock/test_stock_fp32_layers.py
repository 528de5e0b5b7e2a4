"""FP32 layers through a real mlc_llm: its configuration names them, its compiler obeys."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in import run
from support.checkpoints import random_world, write_hf_safetensors

from mlc_rwkv_world.artifact.embedded import read_embedded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host,
]

FUNCTIONS = {"prefill", "decode", "batch_prefill", "batch_decode"}


# A part of a block in TVMScript: its attributes are a text in the text, its results' types follow.
_PART = re.compile(
    r'"rwkv_world\.rwkv4\.\w+".*\\"block\\": (\d+), \\"compute\\": \\"(float\d+)\\".*out_ty=(.*)'
)


def results(script: str) -> Iterator[tuple[str, int, str, set[str]]]:
    """Function, block, compute type and types of results of each part, from TVMScript."""
    function = ""
    for line in script.splitlines():
        if defined := re.match(r"\s*def (\w+)\(", line):
            function = defined[1]
        if part := _PART.search(line):
            yield function, int(part[1]), part[2], set(re.findall(r"float\d+", part[3]))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_compiled_with_a_block_in_float32(host_path: list[Path], tmp_path: Path) -> None:
    source = write_hf_safetensors(tmp_path / "tiny", random_world(2, 64, vocab_size=65536))
    folder, dump, library = (tmp_path / name for name in ("model", "dump", "lib.so"))
    options = ["--quantization", "q4f16_1", "--conv-template", "rwkv_world", "-o", folder]
    result = run(["-m", "mlc_llm", "gen_config", source, *options], host_path)
    assert result.returncode == 0, result.stderr[-3000:]
    path = folder / "mlc-chat-config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert config["model_config"]["fp32_layers"] == []
    config["model_config"]["fp32_layers"] = [1]
    path.write_text(json.dumps(config), encoding="utf-8")
    target = {"kind": "cuda", "arch": "sm_80", "thread_warp_size": 32}
    target |= {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152}
    command = ["compile", folder, "--device", json.dumps(target), "--debug-dump", dump]
    result = run(["-m", "mlc_llm", *command, "-o", library], host_path)
    assert result.returncode == 0, result.stderr[-3000:]
    metadata = read_embedded(library)
    assert metadata is not None
    assert (metadata.compute_dtype, metadata.fp32_layers) == ("float16", (1,))
    seen = list(results((dump / "1-precision.py").read_text(encoding="utf-8")))
    assert {function for function, *_ in seen} >= FUNCTIONS
    assert len(seen) == 2 * 2 * len({function for function, *_ in seen})
    for function, block, compute, types in seen:
        # Rows of the state are float32 in every block.
        expected = {"float32"} if block == 1 else {"float16", "float32"}
        assert types == expected, (function, block)
        assert compute == ("float32" if block == 1 else "float16")
