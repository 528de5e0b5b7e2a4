from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from building import build_tiny
from support.checkpoints import Tensors, random_world, write_hf_safetensors, write_pth
from support.once import once

from mlc_rwkv_world import Artifact


@pytest.fixture(scope="session")
def world() -> Tensors:
    """A World model of two blocks of 32 channels."""
    return random_world(2, 32, seed=9)


@pytest.fixture(scope="session")
def source(world: Tensors, shared: Path) -> Path:
    """`world` as a folder called `tiny`, never to be changed."""
    folder = shared / "builder" / "tiny"
    return once(folder, lambda: write_hf_safetensors(folder, world, "float16"))


@pytest.fixture(scope="session")
def broken(world: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same name whose last tensor holds a NaN."""
    head = world["head.weight"].copy()
    head[-1, -1] = np.nan
    path = tmp_path_factory.mktemp("broken") / "tiny.pth"
    return write_pth(path, {**world, "head.weight": head}, "float16")


@pytest.fixture(scope="session")
def built(source: Path, shared: Path) -> Artifact:
    """`source` built at once, never to be changed."""
    record, output = shared / "builder" / "artifact", shared / "builder" / "dist"
    once(record, lambda: record.write_bytes(pickle.dumps(build_tiny(source, output))))
    artifact: Artifact = pickle.loads(record.read_bytes())
    return artifact


@pytest.fixture
def dist(built: Artifact, tmp_path: Path) -> Path:
    """An output folder where no artifact stands, but every module has been lowered before."""
    folder = tmp_path / "dist"
    folder.mkdir()
    return folder


@pytest.fixture
def older(built: Artifact, dist: Path) -> Path:
    """A copy of the artifact in `dist`."""
    return Path(shutil.copytree(built.folder, dist / built.name))
