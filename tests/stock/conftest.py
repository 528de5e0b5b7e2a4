"""A real mlc_llm, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stand_in import PACKAGE_ROOT, run, write_metadata

HOST = ["-c", "import mlc_llm.serve.engine as e; print('found', e.MLCEngine.__name__)"]


@pytest.fixture(autouse=True)
def _two_threads(two_threads: None) -> None:
    """Kernels divide their work."""


def _host_path() -> list[Path]:
    """`MLC_LLM_SOURCE`, a checkout that was built in place, or nothing: an installed one."""
    source = os.environ.get("MLC_LLM_SOURCE")
    return [Path(source) / "python"] if source else []


@pytest.fixture(scope="session")
def host_path(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The path of an interpreter with a real mlc_llm and the plugin; skips where there is none."""
    ours = write_metadata(tmp_path_factory.mktemp("our-site"))
    path = [*_host_path(), ours, PACKAGE_ROOT]
    found = run(HOST, path)
    if not found.stdout.startswith("found"):
        last = found.stderr.strip().splitlines()[-1:] or [found.stdout.strip()]
        pytest.skip(f"needs mlc_llm, installed or at MLC_LLM_SOURCE ({last[0][:200]})")
    return path
