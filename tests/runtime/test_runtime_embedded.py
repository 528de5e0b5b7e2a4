"""What a library's file says of itself, and what is made of it before and after loading."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tvm
from support.artifacts import list_again

from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.identity import describe_library
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.metadata import REVISION
from mlc_rwkv_world.artifact.registry import register
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.errors import ArtifactError
from mlc_rwkv_world.runtime import Engine, load, tvm_runtime
from mlc_rwkv_world.runtime.library import Library
from mlc_rwkv_world.runtime.parameters import load_parameters
from mlc_rwkv_world.runtime.verify import verify

OTHER = "9" + tvm.__version__[1:]
SAID = f'"tvm": "{tvm.__version__}"'.encode()


@pytest.fixture
def artifact(demo_artifact: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the smallest artifact, to be changed."""
    return Path(shutil.copytree(demo_artifact("q4f16_1"), tmp_path / "demo-q4f16_1"))


def library_of(folder: Path) -> Path:
    (path,) = folder.glob("*.so")
    return path


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change bytes of a file that other artifacts may be linked to."""
    before = path.read_bytes()
    after = change(before)
    assert after != before and len(after) == len(before)
    path.unlink()
    path.write_bytes(after)
    if (path.parent / "SHA256SUMS").exists():
        list_again(path.parent)


def by_another_tvm(data: bytes) -> bytes:
    assert data.count(SAID) == 1
    return data.replace(SAID, f'"tvm": "{OTHER}"'.encode())


def of_another_machine_format(data: bytes) -> bytes:
    """With the version of TVM's virtual machine raised, as the next TVM may do."""
    changed, count = re.subn(rb"(relax\.VMExecutable.{8,40}?)0\.1\d", rb"\g<1>0.99", data)
    assert count == 1
    return changed


def test_the_file_says_what_the_loaded_library_says(artifact: Path) -> None:
    metadata = load(artifact).metadata
    assert read_embedded(library_of(artifact)) == metadata
    assert metadata.tvm == tvm.__version__


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"model_type": "rwkv_world"', b"[" * 9999])
def test_files_that_say_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(content + b'{"model_type": "rwkv_world", "x": ' + content)
    assert read_embedded(path) is None


def test_a_library_of_another_tvm_that_loads(artifact: Path) -> None:
    """Only what does not work is refused: 0.26 and 0.27 load each other's libraries."""
    path = library_of(artifact)
    rewrite(path, by_another_tvm)
    assert load(artifact).metadata.tvm == OTHER
    said = describe_library(path, artifact / "params", tvm.__version__)
    assert f"built by TVM {OTHER}, and {tvm.__version__} is here" in said


def test_a_library_of_another_tvm_that_does_not_load(artifact: Path) -> None:
    path = library_of(artifact)
    rewrite(path, of_another_machine_format)
    with pytest.raises(ArtifactError, match=f"cannot be loaded by TVM {tvm.__version__}"):
        load(artifact)
    rewrite(path, by_another_tvm)
    with pytest.raises(ArtifactError) as caught:
        load(artifact)
    message = str(caught.value)
    assert message.startswith(
        f"{path} was built for another TVM: {OTHER}, and TVM {tvm.__version__}"
    )
    assert message.endswith(f"Build the model again, or install apache-tvm=={OTHER}.")
    assert "\n" not in message


def test_a_library_that_does_not_say_which_tvm_built_it(artifact: Path) -> None:
    """As stock mlc_llm's, and ours before they said it."""
    rewrite(
        library_of(artifact), lambda data: data.replace(SAID, b" " * (len(SAID) - 7) + b'"m": ""')
    )
    assert load(artifact).metadata.tvm is None
    assert "does not say which TVM" in describe_library(library_of(artifact), artifact / "params")


def test_another_revision_is_refused_before_any_code_of_it_runs(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f'"revision": {REVISION}'.encode()
    rewrite(library_of(artifact), lambda data: data.replace(said, b'"revision": 1'))
    monkeypatch.setattr(tvm_runtime, "machine", None)
    with pytest.raises(ArtifactError, match=f"built by revision 1 .* revision {REVISION}. Build"):
        load(artifact)


def test_verify_compares_library_and_weights(
    artifact: Path, demo_artifact: Callable[[str], Path]
) -> None:
    """Their checksums may all be right: whoever mixes two builds can write them anew."""
    (artifact / "SHA256SUMS").unlink()
    assert all(verdict.fault is None for verdict in verify(find(artifact)))
    rewrite(
        library_of(artifact),
        lambda data: re.sub(
            rb'"build_id": "[0-9a-f]{32}"', b'"build_id": "%s"' % (b"0" * 32), data
        ),
    )
    faults = {v.path: v.fault for v in verify(find(artifact)) if v.fault is not None}
    assert list(faults) == [library_of(artifact)]
    assert "the library has build id 0000" in str(faults[library_of(artifact)])


# Loads an artifact whose library has one flipped bit after another in what it says of itself.
FLIPPER = """
import random, sys
from pathlib import Path
from mlc_rwkv_world.cli.start import start
start()
from mlc_rwkv_world.artifact.checksums import write_checksums
from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.errors import RwkvWorldError
from mlc_rwkv_world.runtime import Engine, load
from mlc_rwkv_world.runtime.library import Library
from mlc_rwkv_world.runtime.parameters import load_parameters
folder, flips = Path(sys.argv[1]), int(sys.argv[2])
(path,) = folder.glob("*.so")
good = path.read_bytes()
start = good.index(b'"rwkv_world": {', good.index(b'{"model_type": "rwkv_world"'))
end = good.index(b'"memory_usage"', start)
rng, refused = random.Random(1), 0
for number in range(flips):
    data = bytearray(good)
    data[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    # The system's loader gives the library that it has where it knows the file.
    path.unlink()
    path = path.with_name(f"demo-q4f16_1-llvm-{number}.so")
    path.write_bytes(data)
    write_checksums(folder, [path.name], {})
    try:
        engine = load(folder, "cpu")
        states = [engine.new_state() for _ in range(2)]
        engine.prefill([1, 2, 3], states[0])
        engine.decode_batch([1, 2], states)
    except RwkvWorldError as error:
        refused += 1
        assert str(path) in str(error), error
print(refused)
"""


@pytest.mark.slow
def test_flipped_bits_in_what_a_library_says(artifact: Path) -> None:
    """A named error each, or a model that runs: no crash, no allocation without measure."""
    flips = 40
    command = [sys.executable, "-c", FLIPPER, str(artifact), str(flips)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert flips // 2 < int(done.stdout) <= flips


def packed(engine: Engine, **changes: object) -> Library:
    """The engine's library as if it said something else of its first tensor that is packed."""
    metadata = engine.library.metadata
    assert metadata.packed is not None
    entries = list(metadata.packed)
    place = next(i for i, entry in enumerate(entries) if entry.pack)
    entries[place] = replace(entries[place], **changes)  # type: ignore[arg-type]
    return replace(engine.library, metadata=replace(metadata, packed=tuple(entries)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ("head.weight",)}, r"rwkv_world_pack\w* failed \("),
        ({"shape": (1, 2, 3)}, r"instead of \w+ \[1, 2, 3\]\. Build the model again"),
        ({"dtype": "int8"}, r"instead of int8 \["),
        ({"pack": "rwkv_world_pack_none"}, "has no function rwkv_world_pack_none"),
    ],
)
def test_packing_that_fails(artifact: Path, changes: dict[str, object], message: str) -> None:
    engine = load(artifact)
    if "sources" in changes:
        changes = {"sources": (engine.metadata.parameters[-1].name,)}
    with pytest.raises(ArtifactError, match=message) as caught:
        load_parameters(ParameterIndex.read(artifact / "params"), packed(engine, **changes))
    assert str(library_of(artifact)) in str(caught.value)


@pytest.mark.slow
def test_doctor_tells_which_tvm_built_what(artifact: Path) -> None:
    rewrite(library_of(artifact), by_another_tvm)
    assert register(artifact)
    command = [sys.executable, "-m", "mlc_rwkv_world", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if str(library_of(artifact)) in line]
    assert line.strip().startswith("library ")
    assert f"built by TVM {OTHER}, and {tvm.__version__} is here" in line
