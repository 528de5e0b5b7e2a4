"""Nothing that a pickle asks for is ever executed."""

from __future__ import annotations

import collections
import io
import pickle
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import Tensors, hf_name, write_config, write_pth

from mlc_rwkv_world.checkpoint import open_checkpoint
from mlc_rwkv_world.errors import CheckpointError


class Runs:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def torch_archive(path: Path, pickled: bytes, **entries: bytes) -> Path:
    """A file as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for key, data in entries.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def refused(path: Path, what: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert what in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that the attacks below try to make."""
    return tmp_path / "the-attack-ran"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["alone", "value", "key", "nested", "attribute", "argument"])
def test_calls_are_refused_wherever_they_stand(
    tmp_path: Path, victim: Path, place: str, protocol: int
) -> None:
    import os

    attack = Runs(os.system, f"touch {victim}")
    state: Any = {"emb.weight": attack}
    if place == "alone":
        state = attack
    elif place == "key":
        state = Runs(dict, [(attack, 1)])
    elif place == "nested":
        state = {"blocks": [1, (2, {"deep": [attack]})]}
    elif place == "attribute":
        state = collections.OrderedDict()
        state._metadata = attack
    elif place == "argument":
        state = {"w": Runs(torch._utils._rebuild_tensor_v2, attack, 0, (1,), (1,))}
    path = torch_archive(tmp_path / "w.pth", pickle.dumps(state, protocol=protocol))
    with pytest.raises(CheckpointError, match="was not executed"):
        open_checkpoint(path)
    assert not victim.exists()
    # The attack is real: Python's own reader runs it.
    if place == "value":
        pickle.loads(pickle.dumps(state, protocol=protocol))
        assert victim.exists()


@pytest.mark.parametrize(
    "function",
    [eval, exec, getattr, __import__, open, subprocess.Popen, io.open_code, torch.load, np.load],
    ids=lambda function: function.__name__,
)
def test_the_function_asked_for_is_named(tmp_path: Path, function: Callable[..., Any]) -> None:
    path = torch_archive(tmp_path / "w.pth", pickle.dumps({"a": Runs(function, "x")}))
    refused(path, f".{function.__name__}'")


def unpickle_instructions(victim: Path) -> dict[str, bytes]:
    command = f"touch {victim}".encode()
    text = b"X" + len(command).to_bytes(4, "little") + command
    short = b"\x8c\x05posix\x8c\x06system"
    return {
        "GLOBAL": b"\x80\x02cposix\nsystem\n" + text + b"\x85R.",
        "INST": b"(" + text + b"iposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02cposix\nsystem\n" + text + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cposix\nsystem\n" + text + b"\x85}\x92.",
        "STACK_GLOBAL": b"\x80\x04" + short + b"\x93" + text + b"\x85R.",
        "STACK_GLOBAL by memo": b"\x80\x04\x8c\x06system\x94\x8c\x05posix\x94h\x01h\x00\x93.",
        "STACK_GLOBAL, dotted": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93" + text + b"\x85R.",
        "STACK_GLOBAL, no text": b"\x80\x04K\x01K\x02\x93.",
        "GLOBAL, dotted": b"\x80\x04ctorch\nos.system\n.",
        "GLOBAL, module of torch": b"\x80\x02ctorch.hub\nload\n.",
        "GLOBAL, admitted module": b"\x80\x02ctorch._utils\n_import_dotted_name\n.",
        "GLOBAL, method of an admitted name": b"\x80\x04ctorch\nFloatStorage.from_file\n.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT4": b"\x80\x02\x84\x01\0\0\0.",
        "PERSID": b"Pposix\n.",
        "BINPERSID of a global": b"\x80\x02ccollections\nOrderedDict\nQ.",
        "BUILD on a name": b"\x80\x02ccollections\nOrderedDict\n}X\x01\0\0\0aK\x01sb.",
        "BUILD with slots on a storage": b"\x80\x02ctorch\nFloatStorage\nN}\x86b.",
        "REDUCE of a dict": b"\x80\x02})R.",
        "REDUCE of text": b"\x80\x02" + text + b")R.",
        "OrderedDict with arguments": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
        "a storage called": b"\x80\x02ctorch\nFloatStorage\n)R.",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "BYTEARRAY8": b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b".",
        "BINBYTES8": b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".",
        "LONG4": b"\x80\x02\x8b" + (1 << 30).to_bytes(4, "little") + b".",
        "LONG": b"L" + b"9" * 100_000 + b"L\n.",
        "BINUNICODE8": b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b".",
        "LONG_BINGET": b"\x80\x02j\xff\xff\xff\x7f.",
        "empty": b"",
        "stop alone": b".",
        "mark alone": b"(.",
        "mark as a value": b"\x80\x02](a.",
        "unhashable key": b"\x80\x02}]K\x01s.",
        "tuple as key": b"\x80\x02})K\x01s.",
        "a key without a value": b"\x80\x02}(K\x01u.",
        "the same key twice": b"\x80\x02}X\x01\0\0\0aK\x01sX\x01\0\0\0aK\x02s.",
        "no dictionary": b"\x80\x02K\x01K\x02K\x03s.",
        "no list": b"\x80\x02}K\x01a.",
        "more after its end": b"\x80\x02}.}.",
        "two values": b"\x80\x02}}.",
        "text that is not UTF-8": b"\x80\x02X\x02\0\0\0\xff\xfe.",
    }


@pytest.mark.parametrize("name", unpickle_instructions(Path()))
def test_instructions_that_no_checkpoint_needs(tmp_path: Path, victim: Path, name: str) -> None:
    path = torch_archive(tmp_path / "w.pth", unpickle_instructions(victim)[name])
    with pytest.raises(CheckpointError, match=r"was not executed|garbled|twice"):
        open_checkpoint(path)
    assert not victim.exists()


def test_lists_that_hold_themselves(tmp_path: Path) -> None:
    around = b"\x80\x02}X\x01\0\0\0a]q\x00h\x00as."
    refused(torch_archive(tmp_path / "w.pth", around), "'a' is a list, expected a tensor")


def test_nest_of_tuples_that_takes_for_ever_to_hash_or_print(tmp_path: Path) -> None:
    nest = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    as_key = b"\x80\x02}" + nest + b"K\x01s."
    refused(torch_archive(tmp_path / "w.pth", as_key), "a dictionary has a tuple as key")
    as_value = b"\x80\x02}X\x01\0\0\0a" + nest + b"s."
    refused(torch_archive(tmp_path / "w.pth", as_value), "'a' is a tuple, expected a tensor")


@pytest.mark.slow
@pytest.mark.parametrize(
    "instruction",
    [b"}", b"]", b"(", b")", b"]]\x86", b"]\x94", b"J\xff\xff\xff\x7f", b"ctorch\nFloatStorage\n"],
)
def test_small_pickles_that_make_much_of_nothing(tmp_path: Path, instruction: bytes) -> None:
    path = torch_archive(tmp_path / "w.pth", instruction * ((4 << 20) // len(instruction)))
    began = time.process_time()
    refused(path, "its list of tensors is garbled")
    assert time.process_time() - began < 5
    # Tracing takes several times as long.
    tracemalloc.start()
    try:
        refused(path, "its list of tensors is garbled")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_numbers_as_keys_that_all_collide(tmp_path: Path) -> None:
    """Python's hash of an integer is its remainder by 2**61 - 1."""
    keys = [(i * sys.hash_info.modulus).to_bytes(11, "little") for i in range(1, 100_000)]
    pairs = b"".join(b"\x8a\x0b" + key + b"N" for key in keys)
    path = torch_archive(tmp_path / "w.pth", b"\x80\x02}(" + pairs + b"u.")
    began = time.process_time()
    refused(path, "a number beyond all counting as key")
    assert time.process_time() - began < 5


def tensor_pickle(
    numel: int = 4,
    offset: int = 0,
    shape: Any = (4,),
    strides: Any = (1,),
    storage: Any = torch.FloatStorage,
    key: Any = "0",
) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", storage, key, "cpu", numel) if value is Ellipsis else None

    out = io.BytesIO()
    rebuild = Runs(torch._utils._rebuild_tensor_v2, ..., offset, shape, strides, False, {})
    Pickler(out, 2).dump({"w": rebuild})
    return out.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (5,)}, "does not fit its storage of 4 elements"),
        ({"offset": 1}, "does not fit"),
        ({"strides": (2,)}, "does not fit"),
        ({"shape": (1 << 40, 1 << 40), "strides": (0, 0)}, "does not fit"),
        ({"shape": (5,), "strides": (0,)}, "does not fit"),
        ({"shape": (1 << 50,)}, "not plain numbers"),
        ({"shape": (-4,)}, "not plain numbers"),
        ({"strides": (-1,)}, "not plain numbers"),
        ({"offset": -1}, "not plain numbers"),
        ({"shape": ("4",)}, "not plain numbers"),
        ({"shape": (True,)}, "not plain numbers"),
        ({"shape": (2, 2)}, "2 axes and 1 strides"),
        ({"shape": (1,) * 9, "strides": (1,) * 9}, "9 axes"),
        ({"shape": [4]}, "described in an unknown way"),
        ({"numel": -1}, "has -1 elements"),
        ({"numel": "4"}, "described in an unknown way"),
        ({"numel": 8}, "has 16 bytes, expected 32"),
        ({"numel": 1 << 60, "shape": (1 << 40,)}, "has 16 bytes, expected"),
        ({"storage": torch.LongStorage}, "has 16 bytes, expected 32"),
        ({"storage": torch.Tensor}, "'torch.Tensor'"),
        ({"storage": "FloatStorage"}, "described in an unknown way"),
        ({"key": 0}, "described in an unknown way"),
        ({"key": "1"}, "entry data/'1') is missing"),
        ({"key": "../data/0"}, "is missing"),
        ({"key": "/etc/passwd"}, "is missing"),
    ],
)
def test_tensors_that_reach_outside(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    attack = torch_archive(tmp_path / "w.pth", tensor_pickle(**changes), **{"0": b"\0" * 16})
    refused(attack, message)


def test_the_tensor_above_is_right_without_changes(tmp_path: Path) -> None:
    path = torch_archive(tmp_path / "w.pth", tensor_pickle(), **{"0": b"\0" * 16})
    refused(path, "is not an RWKV model: its tensors are named 'w'")


def test_no_reader_imports_runs_or_opens_anything_else(
    tmp_path: Path, world: Tensors, victim: Path
) -> None:
    """Watched by Python's audit hooks, in every file kind that can hold a pickle."""
    import os

    evil = pickle.dumps({"emb.weight": Runs(os.system, f"touch {victim}")})
    attacks = [torch_archive(tmp_path / "a.pth", evil)]
    (tmp_path / "bare.pth").write_bytes(evil)
    old = tmp_path / "old.bin"
    torch.save(Runs(os.system, f"touch {victim}"), old, _use_new_zipfile_serialization=False)
    attacks += [tmp_path / "bare.pth", old]
    for name in ("pytorch_model.bin", "model.safetensors"):
        folder = tmp_path / name.replace(".", "-")
        write_config(folder, world)
        torch_archive(folder / name, evil)
        attacks.append(folder)
    good = write_pth(tmp_path / "good.pth", {hf_name(k): v for k, v in world.items()})
    program = f"""
        import sys
        from mlc_rwkv_world.checkpoint import open_checkpoint
        from mlc_rwkv_world.errors import CheckpointError
        events = []
        watching = True
        def watch(event, arguments):
            if watching:
                events.append((event, *map(str, arguments[:1])))
        checkpoint = open_checkpoint({str(good)!r})
        for name in checkpoint.names():
            checkpoint.read(name)
        sys.addaudithook(watch)
        checkpoint = open_checkpoint({str(good)!r})
        for name in checkpoint.names():
            checkpoint.read(name)
        for path in {[str(path) for path in attacks]!r}:
            try:
                open_checkpoint(path)
            except CheckpointError:
                continue
            sys.exit("was not refused: " + path)
        watching = False
        for event in sorted(set(events)):
            print(*event)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    events = [line.split(" ", 1) for line in done.stdout.splitlines()]
    inside = ("open", "os.listdir", "os.scandir", "glob.glob", "pathlib.Path.glob")
    for event, *argument in events:
        assert event in (*inside, "object.__getattr__"), (event, argument)
        if event == "open":
            assert argument[0].startswith(str(tmp_path))
    assert any(event == "open" for event, *_ in events)
    assert not victim.exists()
