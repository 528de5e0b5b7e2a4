"""Building for machines that are not here, from a checkpoint to an artifact."""

from __future__ import annotations

import platform
import re
import tarfile
from pathlib import Path

import pytest
from support.checkpoints import random_rwkv7, random_world, write_pth

from mlc_rwkv_world import Artifact, build
from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.search import library_kind
from mlc_rwkv_world.compiler import cuda
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import ArtifactError, TargetError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.system() != "Linux", reason="builds as on Linux"),
]

# The machine of an ELF file that holds code of NVIDIA's, and where the file's header has it.
_EM_CUDA = 190
_MACHINE, _FLAGS = slice(18, 20), slice(48, 52)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = random_world(2, 64, seed=3)
    return write_pth(tmp_path_factory.mktemp("source") / "tiny.pth", world, "float16")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def metal(source: Path, dist: Path) -> Artifact:
    return build(source, target="metal", output=dist, prefill_chunk_size=16)


@pytest.fixture(scope="module")
def for_cuda(source: Path, dist: Path, metal: Artifact) -> Artifact:
    """Built after and into the artifact for Metal, whose library stays."""
    return build(source, target="cuda -arch=sm_90", output=dist, prefill_chunk_size=16)


def test_metal_objects_are_for_an_apple_linker(metal: Artifact, tmp_path: Path) -> None:
    objects, shaders = metal.libraries
    assert (objects.name, shaders.name) == ("tiny-q4f16_1-metal.tar", "tiny-q4f16_1-metal.metal")
    with tarfile.open(objects) as archive:
        archive.extractall(tmp_path, filter="data")
    headers = {path.name: path.read_bytes()[:16] for path in tmp_path.iterdir()}
    assert len(headers) == 2
    for header in headers.values():
        # MH_MAGIC_64, CPU_TYPE_ARM64, any subtype, MH_OBJECT
        assert header[:8] == bytes.fromhex("cffaedfe0c000001")
        assert header[12:] == bytes.fromhex("01000000")


def test_metal_shaders_are_those_of_the_kernels(metal: Artifact) -> None:
    text = metal.libraries[1].read_text()
    kernels = re.findall(r"kernel void (\w+)", text)
    assert len(set(kernels)) == len(kernels) > 20
    for name in ("wkv_whole", "wkv_step", "token_shift", "linear", "layer_norm", "state_set"):
        assert any(name in kernel for kernel in kernels), name
    # Products use the GPU's matrix units.
    assert "simdgroup_multiply_accumulate" in text


def test_what_a_metal_build_says(metal: Artifact) -> None:
    assert metal.compute_dtype == "float16"
    assert metal.notes == (
        "no linker for arm64-apple-macos here: tiny-q4f16_1-metal.tar holds object files, to be "
        "linked where they will run; tiny-q4f16_1-metal.metal is the shaders' source",
    )


def test_cuda_library(for_cuda: Artifact) -> None:
    (library,) = for_cuda.libraries
    assert library_kind(library) == for_cuda.target == "cuda"
    assert for_cuda.compute_dtype == "float16"
    data = library.read_bytes()
    assert data[:4] == b"\x7fELF"
    assert b'"arch\\": \\"sm_90' in data
    if not cuda.compiles():
        assert b"__launch_bounds__" in data
        assert "holds CUDA source for sm_90" in for_cuda.notes[0]
        return
    # Compiled, and for that GPU: no source, but an ELF file of NVIDIA's with 90 in its flags.
    assert not for_cuda.notes
    assert b"__launch_bounds__" not in data
    inner = data[data.index(b"\x7fELF", 1) :]
    assert int.from_bytes(inner[_MACHINE], "little") == _EM_CUDA
    assert 90 in inner[_FLAGS]


def test_libraries_for_gpus_hold_what_draws_tokens_there(
    metal: Artifact, for_cuda: Artifact, tmp_path: Path
) -> None:
    """mlc_llm's engine stops on a GPU where one of these is missing."""
    with tarfile.open(metal.libraries[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    objects = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for data in (objects, for_cuda.libraries[0].read_bytes()):
        for name in (b"argsort_probs", b"multinomial_from_uniform", b"renormalize_by_top_p"):
            assert name in data
        assert b"sample_with_top_p" in data
        assert b"sampler_take_probs" in data


def test_cuda_library_with_all_blocks_in_float32(source: Path, tmp_path: Path) -> None:
    artifact = build(
        source,
        target="cuda -arch=sm_80",
        output=tmp_path,
        fp32_layers="all",
        prefill_chunk_size=16,
        stock=False,
    )
    assert (artifact.compute_dtype, artifact.fp32_layers) == ("float16", (0, 1))
    found = read_embedded(artifact.libraries[0])
    assert found is not None
    assert (found.compute_dtype, found.fp32_layers) == ("float16", (0, 1))
    assert bool(artifact.notes) != cuda.compiles()


def test_libraries_for_other_targets_stay(for_cuda: Artifact) -> None:
    assert {path.name for path in for_cuda.folder.iterdir()} == {
        "params",
        "SHA256SUMS",
        "tiny-q4f16_1-metal.tar",
        "tiny-q4f16_1-metal.metal",
        "tiny-q4f16_1-cuda.so",
    }


def test_reusing_a_library_of_another_kind_is_refused(
    source: Path, for_cuda: Artifact, tmp_path: Path
) -> None:
    # Without a GPU it cannot even be opened.
    with pytest.raises(ArtifactError, match=r"tiny-q4f16_1-cuda\.so"):
        build(source, target="llvm", output=tmp_path, reuse_lib=for_cuda.libraries[0])


def test_cuda_needs_nvcc_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "compiles", lambda: True)
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with (
        pytest.raises(TargetError, match="nvcc is not on the PATH"),
        cuda.compiling(resolve("cuda -arch=sm_90").target),
    ):
        pass


@pytest.mark.parametrize("target", ["cuda -arch=sm_90", "metal", "opencl"])
def test_rwkv7_for_gpus(target: str, tmp_path: Path) -> None:
    source = write_pth(tmp_path / "seven.pth", random_rwkv7(2, 128), "float16")
    artifact = build(source, target=target, output=tmp_path / "dist", prefill_chunk_size=16)
    assert artifact.compute_dtype == "float16"
    texts = [path.read_bytes() for path in artifact.libraries]
    for name in (b"wkv_pooled", b"head_norm", b"keys"):
        assert any(name in text for text in texts), name
    found = read_embedded(artifact.libraries[0])
    if found is not None:
        assert found.initial_rows == (0.0,) * 66


def test_webgpu_objects_are_webassembly(source: Path, tmp_path: Path) -> None:
    artifact = build(source, target="webgpu", output=tmp_path, prefill_chunk_size=16, weights=False)
    objects, shaders = artifact.libraries
    assert (objects.name, shaders.name) == ("tiny-q4f16_1-webgpu.tar", "tiny-q4f16_1-webgpu.wgsl")
    assert library_kind(objects) == artifact.target == "webgpu"
    (note,) = artifact.notes
    assert note.startswith("no linker for wasm32-unknown-unknown-wasm here: ")
    with tarfile.open(objects) as archive:
        archive.extractall(tmp_path / "objects", filter="data")
    for path in (tmp_path / "objects").iterdir():
        assert path.read_bytes()[:8] == b"\0asm\1\0\0\0"
    text = shaders.read_text()
    # Each is named twice: what it shares, and its body.
    kernels = set(re.findall(r"^// Function: (\w+)$", text, re.M))
    assert len(kernels) == text.count("@compute") > 20


def test_another_cpu(source: Path, dist: Path) -> None:
    target = "llvm -mtriple=aarch64-linux-gnu -mattr=+dotprod"
    artifact = build(
        source,
        target=target,
        output=dist,
        prefill_chunk_size=16,
        weights=False,
        use_cache=False,
        stock=False,
    )
    (objects,) = artifact.libraries
    with tarfile.open(objects) as archive:
        names = archive.getnames()
        member = archive.extractfile("lib0.o")
        assert member is not None
        header = member.read(20)
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[_MACHINE], "little") == 183  # EM_AARCH64
    assert len(names) == 2
    (note,) = artifact.notes
    assert note.startswith("no linker for aarch64-linux-gnu here: ")
