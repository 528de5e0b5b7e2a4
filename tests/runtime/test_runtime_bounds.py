"""What a machine can be asked for: threads, devices, memory."""

from __future__ import annotations

import os

import pytest
import tvm_ffi

from mlc_rwkv_world.cli import status
from mlc_rwkv_world.errors import (
    ArtifactError,
    OutOfMemoryError,
    TargetError,
    UsageError,
    is_out_of_memory,
)
from mlc_rwkv_world.runtime import threads, tvm_runtime
from mlc_rwkv_world.runtime.device import open_device


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads TVM was asked for; it is not."""
    counts: list[int] = []
    monkeypatch.setattr(tvm_runtime, "function", lambda _: lambda _, count: counts.append(count))
    monkeypatch.setattr(threads, "physical_cores", lambda: 7)
    # Whatever is set is put back.
    monkeypatch.setenv(threads.VARIABLE, "1")
    return counts


@pytest.mark.parametrize("count", [65, 9999, 99999, 1 << 70])
def test_more_threads_than_a_machine_takes(
    asked: list[int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(UsageError, match="this machine has 2 processors; give at most 64"):
        threads.use(count)
    assert not asked


@pytest.mark.parametrize("value", ["9999", "99999", "9" * 5000, "0", "two", ""])
@pytest.mark.parametrize("other", ["3", "99999"])
def test_variables_that_would_hang_it(
    asked: list[int], value: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM reads them itself, the second where the first is not there; so the first is mended."""
    monkeypatch.setenv(threads.VARIABLE, value)
    monkeypatch.setenv("OMP_NUM_THREADS", other)
    assert threads.use(None) == 7
    assert os.environ[threads.VARIABLE] == "7"
    assert threads.use(9) == 9
    assert asked == [7, 9]


def test_a_variable_that_makes_sense_is_heeded(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(threads.VARIABLE, "12")
    assert threads.use(None) == 12
    assert os.environ[threads.VARIABLE] == "12"
    monkeypatch.delenv(threads.VARIABLE)
    assert threads.use(9) == 9
    assert os.environ[threads.VARIABLE] == "9"


@pytest.mark.parametrize("name", ["cpu:1", "cpu:7", "cpu:9999"])
def test_processors_are_one_device(name: str) -> None:
    with pytest.raises(TargetError, match=f"no device {name}: all processors are one.*--threads"):
        open_device(name, ["cpu"])
    assert str(open_device("cpu:0", ["cpu"])) == str(open_device("cpu", ["cpu"]))


def test_numbers_of_devices_have_a_bound() -> None:
    with pytest.raises(UsageError, match="'cuda:99999' is no device"):
        open_device("cuda:99999", ["cuda"])


def test_a_tensor_for_which_there_is_no_room() -> None:
    with pytest.raises(OutOfMemoryError, match="memory ran out for a tensor float32 "):
        tvm_runtime.empty([1 << 50], "float32", tvm_ffi.device("cpu", 0))


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA: out of memory"), True),
        (RuntimeError("cudaErrorMemoryAllocation"), True),
        (RuntimeError("Mismatched device"), False),
        (OSError(2, "No such file"), False),
        (ArtifactError("a file called 'out of memory' is damaged"), False),
    ],
)
def test_memory_that_runs_out_is_told_as_such(
    error: Exception, is_memory: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_out_of_memory(error) == is_memory
    assert (status.exit_status(error) == OutOfMemoryError.exit_status) == is_memory
    status.report("x", error)
    shown = capsys.readouterr().err
    assert shown.startswith("x: error: memory ran out" if is_memory else "x: ")
    assert "verify" not in shown
