from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import Tensors, random_world, write_hf_bin


@pytest.fixture(scope="session")
def world() -> Tensors:
    """A World model of two blocks, as small as the vocabulary allows."""
    return random_world(num_hidden_layers=2, hidden_size=4, seed=7)


@pytest.fixture(scope="session")
def hf_folder(world: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`world` as a Hugging Face folder, never to be changed."""
    return write_hf_bin(tmp_path_factory.mktemp("hf") / "RWKV-4-World", world)
