"""What would end a build is said before its first long step."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc_rwkv_world import build
from mlc_rwkv_world.errors import TargetError, UsageError
from mlc_rwkv_world.reporter import Reporter


class Listening(Reporter):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)


@pytest.mark.parametrize(
    ("variables", "found"),
    [({"PATH": "/nowhere"}, "none is on the PATH"), ({"CXX": "no-such"}, "'no-such'")],
)
def test_a_missing_linker(
    variables: dict[str, str], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    heard = Listening()
    with pytest.raises(TargetError, match=f"needs a C.. compiler, and {found}"):
        build("owner/name", target="llvm", output=tmp_path, reporter=heard)
    assert heard.stages == []
    # Objects are linked elsewhere, and weights not at all: the next thing missing is the model.
    with pytest.raises(UsageError, match="say which checkpoint"):
        build(target="llvm", output=tmp_path, system_lib=True)
    with pytest.raises(UsageError, match="say which checkpoint"):
        build(target="llvm", output=tmp_path, library=False)


@pytest.mark.parametrize("name", ["max_seq_len", "prefill_chunk_size", "max_batch_size"])
@pytest.mark.parametrize("value", [0, 1 << 40, 10**20])
def test_sizes_have_bounds(name: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}; it"):
        build("owner/name", output=tmp_path, **{name: value})  # type: ignore[arg-type]


def test_places_are_put_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for options in ({"output": "~nosuchuser/x"}, {"reuse_lib": "~nosuchuser/x"}):
        with pytest.raises(UsageError, match="~nosuchuser stands for is not known"):
            build("owner/name", target="llvm", **options)  # type: ignore[arg-type]
    (tmp_path / "here" / "models" / "m").mkdir(parents=True)
    with pytest.raises(Exception, match=str(tmp_path / "here" / "models" / "m")):
        build(model="m", target="llvm", output="~/here", library=False)
