"""What `--target` accepts, completes, and refuses."""

from __future__ import annotations

import json
import platform

import pytest
import tvm_ffi

from mlc_rwkv_world.compiler.library import ending
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import TargetError

ON_LINUX = platform.system() == "Linux"
ON_X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.mark.parametrize("text", ["llvm", " llvm ", '{"kind": "llvm"}'])
def test_llvm_is_this_cpu(text: str) -> None:
    target = resolve(text)
    assert target.kind == "llvm"
    assert target.host == target.target
    assert platform.machine().lower().replace("arm64", "aarch64") in str(
        target.host.attrs["mtriple"]
    ).replace("arm64", "aarch64")
    assert not target.notes


def test_auto_is_one_of_the_kinds() -> None:
    assert resolve("auto").kind in ("llvm", "cuda", "metal")


@pytest.mark.parametrize(
    "text",
    [
        "llvm",
        "llvm -mcpu=haswell -mtriple=x86_64-linux-gnu",
        "llvm -mtriple=aarch64-linux-gnu -mattr=+dotprod,+fullfp16",
        "llvm -num-cores=2",
        "cuda -arch=sm_90",
        'cuda -arch=sm_86 -host="llvm -mtriple=x86_64-linux-gnu -mcpu=haswell"',
        "nvidia/nvidia-a100",
        "metal",
        "apple/m1-gpu",
        "opencl",
        "webgpu",
        "webgpu -host=llvm",
        "raspberry-pi/4b-aarch64",
    ],
)
def test_description_reads_back(text: str) -> None:
    target = resolve(text)
    again = resolve(target.describe())
    assert again.describe() == target.describe()
    assert again.cpu_features() == target.cpu_features()


def test_options_reach_tvm() -> None:
    cuda = resolve('cuda -arch=sm_90 -host="llvm -mtriple=x86_64-linux-gnu -mcpu=haswell"')
    assert cuda.target.attrs["arch"] == "sm_90"
    assert cuda.host.attrs["mcpu"] == "haswell"
    assert cuda.target.attrs["max_shared_memory_per_block"] == 49152
    arm = resolve("llvm -mtriple=aarch64-linux-gnu -mattr=+dotprod,+fullfp16")
    assert {"dotprod", "fullfp16", "neon"} <= set(arm.cpu_features())
    assert resolve("llvm -num-cores=2").target.attrs["num-cores"] == 2
    assert resolve("nvidia/nvidia-a100").target.attrs["arch"] == "sm_80"
    # TVM's own is twice what every WebGPU has.
    assert resolve("webgpu").target.attrs["max_shared_memory_per_block"] == 16384
    assert resolve("webgpu").host.attrs["mtriple"].startswith("wasm32")


def test_a_host_that_lacks_its_triple_is_this_system() -> None:
    target = resolve('cuda -arch=sm_90 -host="llvm -num-cores=1"')
    assert target.host.attrs["mtriple"] == resolve("llvm").host.attrs["mtriple"]
    assert ending(target, False) == ending(resolve("llvm"), False)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "'' is not a target"),
        ("vulkan", "was built without vulkan"),
        ("rocm", "'rocm' is not a target of this package; use auto, llvm, cuda, metal"),
        ("c", "'c' is not a target"),
        ("nobody/nothing", "TVM does not accept it"),
        ("[]", "is not a target"),
        ("{", "is not valid JSON"),
        ('{"kind": 3}', "3 is not a target"),
        ("llvm mcpu=haswell", "'mcpu=haswell' is not of the form -key=value"),
        ("llvm -mcpu=", "'-mcpu=' is not of the form"),
        ("llvm -nonsense=1", "TVM does not accept it: .*nonsense"),
        ("llvm -mcpu=nonesuch", "LLVM knows no CPU 'nonesuch'"),
        ("llvm -mtriple=nonsense", "LLVM knows no CPU 'generic' of 'nonsense'"),
        ("cuda -arch='sm_90", "cannot be read: No closing quotation"),
        ("cuda -arch=90", "TVM does not accept it"),
        ("cuda -arch=sm_1", "models are built for sm_53 and later"),
        ("cuda -host=c", "the host has to be a CPU"),
        ('cuda -host="llvm -mcpu=nonesuch"', "LLVM knows no CPU 'nonesuch'"),
        ('{"kind": "cuda", "host": 5}', "the host has to be a CPU"),
    ],
)
def test_refusals_name_the_target_and_the_fault(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=f"--target .*{message}") as caught:
        resolve(text)
    assert text.strip() in str(caught.value)
    assert len(str(caught.value)) < 400


def test_cuda_without_a_device_says_what_it_assumed() -> None:
    target = resolve("cuda")
    if "sm_80" in str(target.target.attrs["arch"]):
        assert "--target 'cuda -arch=sm_90' chooses another" in "".join(target.notes)
    assert not resolve("cuda -arch=sm_90").notes


@pytest.mark.skipif(not ON_X86, reason="names of x86 instruction sets")
def test_instruction_sets_can_be_left_out() -> None:
    target = resolve("llvm -mcpu=haswell -mtriple=x86_64-linux-gnu")
    assert "avx2" in target.cpu_features()
    without = target.without(["avx2", "fma"])
    assert set(target.cpu_features()) - set(without.cpu_features()) == {"avx2", "fma"}
    assert json.loads(without.describe())["mattr"] == ["-avx2", "-fma"]
    cuda = resolve("cuda -arch=sm_90").without(["avx2"])
    assert "avx2" not in cuda.cpu_features()


@pytest.mark.skipif(not (ON_LINUX and ON_X86), reason="which systems are foreign")
@pytest.mark.parametrize(
    "text, expected",
    [
        ("llvm", ".so"),
        ("llvm -mtriple=x86_64-pc-linux-gnu", ".so"),
        ("cuda -arch=sm_90", ".so"),
        ("metal", ".tar"),
        ("metal -host=llvm", ".so"),
        ("webgpu", ".tar"),
        ("webgpu -host=llvm", ".so"),
        ("llvm -mtriple=aarch64-linux-gnu", ".tar"),
        ("llvm -mtriple=x86_64-apple-darwin", ".tar"),
    ],
)
def test_endings(text: str, expected: str) -> None:
    assert ending(resolve(text), system_lib=False) == expected
    assert ending(resolve(text), system_lib=True) == ".tar"


@pytest.mark.parametrize("version", ["0.1.15.post2", "0.2.0"])
def test_metal_is_refused_where_tvm_would_die_of_it(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(tvm_ffi, "__version__", version)
    with pytest.raises(TargetError, match=r"pip install 'apache-tvm-ffi<0\.1\.15'"):
        resolve("metal")
    assert resolve("llvm").kind == "llvm"
