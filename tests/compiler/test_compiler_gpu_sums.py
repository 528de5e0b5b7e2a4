"""The source that is generated for GPUs without one: sums are float32, and WebGPU's limits hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from math import prod

import pytest
import tvm
from support import webgpu
from support.modules import CHANGES, small_config, small_module
from support.webgpu import tint
from tvm import IRModule, tirx
from tvm.target import Target

from mlc_rwkv_world.compiler import metadata, pipeline
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.storage import format_named
from mlc_rwkv_world.tvm_names import name_of

KINDS = ("metal", "opencl", "webgpu")
FORMATS = ("q0f16", "q8f16_1", "q4f16_1")
BUILT = [
    *((4, fmt) for fmt in FORMATS),
    *((version, "q4f16_1") for version in (5, 6, 7)),
    (7, "q0f16"),
]

_DECLARED = re.compile(
    r"\b(?:simdgroup_)?(half|float|u?int|u?long|u?char|bool)(?:\d|8x8)?\*? (?:restrict )?(\w+)"
    r"|\bvar(?:<[^>]*>)? (\w+) : (?:array<)?(?:vec\d<)?(\w+)"
)
_ASSIGNED = re.compile(r"^ +([^=;\n]+) = (.+);$", re.M)
_STORED = re.compile(r"^ +vstore\d\((.+), \d+, ([^,]+)\);$", re.M)
_MATRICES = re.compile(r"simdgroup_multiply_accumulate\((\w+)\[[^,]+, .+, (\w+)\[[^,]+\)")


@cache
def sources(kind: str, quantization: str, version: int = 4) -> dict[str, str]:
    """The source of each kernel of a model whose second block computes in float32."""
    changes = CHANGES[version]
    compute = "float16" if "f16" in quantization else "float32"
    config, fmt, target = (
        small_config(**changes, fp32_layers=(1,)),
        format_named(quantization),
        resolve(kind),
    )
    described = metadata.describe(config, fmt, parameters(config, fmt), target, compute)
    mod = small_module(quantization, compute, **changes, fp32_layers=(1,))
    mod = pipeline.run(mod, target.target, config, described, None, additions=STOCK)
    functions = {name_of(g): f for g, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    # Shapes are the host's to compute.
    kernels = {name: f for name, f in functions.items() if not name.startswith("shape_func")}
    # C for the host: LLVM would take longer over its side than everything else does.
    built = tvm.compile(IRModule(kernels), target=Target(target.target, host="c"))
    text = "\n".join(part.inspect_source() for part in getattr(built, "mod", built).imports)
    found = dict(split(text))
    assert {re.sub(r"_kernel(_\d)?$", "", name) for name in found} == kernels.keys()
    return found


def split(text: str) -> Iterator[tuple[str, str]]:
    """Name and text of each kernel; in OpenCL declarations of all of them come first."""
    is_opencl = "__kernel" in text
    heading = r"^__kernel void (\w+)\([^;]*\{$" if is_opencl else r"^// Function: (\w+)$"
    marks = list(re.finditer(heading, text, re.M))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        yield mark[1], text[mark.start() : following.start() if following else None]


def sums(text: str) -> list[str]:
    """The type of everything in a kernel that something is added to."""
    types = {name or other: of or kind for of, name, other, kind in _DECLARED.findall(text)}
    updates = _ASSIGNED.findall(text) + [(to, value) for value, to in _STORED.findall(text)]
    found = []
    for to, value in [*updates, *_MATRICES.findall(text)]:
        name = next((word for word in re.findall(r"\w+", to) if word in types), None)
        if name is not None and re.search(rf"\b{name}\b", value):
            found.append(types[name])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("version, quantization", BUILT)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_summed_in_float16(kind: str, quantization: str, version: int) -> None:
    kernels = sources(kind, quantization, version)
    for name, text in kernels.items():
        found = set(sums(text))
        assert not found & {"half", "f16"}, name
        assert "linear" not in name or found & {"float", "f32"}, name
    # Prefill, decode and batch; in both types; attention, feed forward and head.
    products = [name for name in kernels if "linear" in name]
    assert len(products) > 15


# What every WebGPU grants, https://www.w3.org/TR/webgpu/#limits: storage buffers of a kernel,
# threads of a workgroup, and bytes that they share.
_BUFFERS, _THREADS, _SHARED = 8, 256, 16384
_SIZE = re.compile(r"@workgroup_size\((\d+), (\d+), (\d+)\)")
_SHARES = re.compile(r"var<workgroup> \w+ : array<(?:vec(\d)<)?(\w+?)>?, (\d+)>;")
_BYTES = {"f16": 2, "f32": 4, "i32": 4, "u32": 4}


def _beyond(text: str) -> list[str]:
    """What a kernel asks of WebGPU that not every one gives."""
    found = []
    if re.search(r"\b[iu](8|16|64)\b|array<bool", text):
        found.append("types")
    if text.count("var<storage") > _BUFFERS:
        found.append("buffers")
    if any(prod(map(int, size)) > _THREADS for size in _SIZE.findall(text)):
        found.append("threads")
    shared = sum(
        int(n or 1) * _BYTES[kind] * int(count) for n, kind, count in _SHARES.findall(text)
    )
    if shared > _SHARED:
        found.append("memory")
    if ("f16" in text) != ("enable f16;" in text):
        found.append("shader-f16")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("version, quantization", [*BUILT, (4, "q4f32_1"), (7, "q4f32_1")])
def test_kernels_fit_every_webgpu(quantization: str, version: int) -> None:
    kernels = sources("webgpu", quantization, version)
    assert {name: found for name, text in kernels.items() if (found := _beyond(text))} == {}
    uses_float16 = any("enable f16;" in text for text in kernels.values())
    assert uses_float16 == ("f16" in quantization)
    # What reduces, does so in memory that a workgroup shares.
    assert any(_SHARES.search(text) for text in kernels.values())
    assert all(_SIZE.search(text) for text in kernels.values())


@pytest.mark.slow
@pytest.mark.skipif(webgpu.missing() is not None, reason=webgpu.missing() or "")
@pytest.mark.parametrize("version, quantization", [*BUILT, (4, "q4f32_1"), (7, "q4f32_1")])
def test_webgpu_takes_the_source(quantization: str, version: int) -> None:
    """naga, the compiler of wgpu and Firefox, finds no fault in any kernel."""
    float16 = "f16" in quantization
    if float16 and not webgpu.has_float16():
        pytest.skip(f"this adapter lacks {webgpu.FLOAT16}")
    device = webgpu.request(float16=float16)
    for name, text in sources("webgpu", quantization, version).items():
        device.create_shader_module(code=text, label=name)


@pytest.mark.slow
@pytest.mark.parametrize("version, quantization", [*BUILT, (4, "q4f32_1"), (7, "q4f32_1")])
def test_tint_takes_the_source(quantization: str, version: int) -> None:
    """Chromium's compiler finds no fault, and has no warning, in any kernel."""
    if (why := tint.missing()) is not None:
        pytest.skip(why)
    kernels = sources("webgpu", quantization, version)
    float16 = "f16" in quantization and tint.has_float16()
    if "f16" in quantization and not float16:
        kernels = {name: as_float32(text) for name, text in kernels.items()}
    assert tint.faults(kernels, float16=float16) == {}


def as_float32(text: str) -> str:
    """A kernel with float32 for float16, where a compiler lacks that: all else stays as it is."""
    text = text.replace("enable f16;\n", "")
    return re.sub(r"(?<=\d)h\b", "f", re.sub(r"\bf16\b", "f32", text))


@pytest.mark.slow
def test_tint_would_find_faults() -> None:
    """Among them a barrier that not every thread of a workgroup reaches."""
    if (why := tint.missing()) is not None:
        pytest.skip(why)
    head = "@group(0) @binding(0) var<storage, read_write> a : array<f32>;\nvar<workgroup> b : f32;"
    start = "@compute @workgroup_size(64) fn f(@builtin(local_invocation_index) i : u32)"
    found = tint.faults(
        {
            "right": f"{head} {start} {{ workgroupBarrier(); a[i] = b; }}",
            "types": f"{head} {start} {{ a[i] = i; }}",
            "a barrier": f"{head} {start} {{ if (a[i] > 0) {{ workgroupBarrier(); }} a[i] = b; }}",
        }
    )
    assert found is not None and found.keys() == {"types", "a barrier"}


def test_what_is_beyond_webgpu_would_be_found() -> None:
    size = "@compute @workgroup_size(32, 8, 1)"
    assert _beyond(f"{size} fn f() {{}}") == []
    assert _beyond("@compute @workgroup_size(32, 16, 1) fn f() {}") == ["threads"]
    assert _beyond("var<storage, read> a : array<f32>;" * 9) == ["buffers"]
    assert _beyond("var<workgroup> a : array<vec4<f32>, 1025>;") == ["memory"]
    assert _beyond("enable f16;\nvar<workgroup> a : array<vec4<f16>, 1025>;") == []
    assert _beyond("var a : array<f16, 4>;") == ["shader-f16"]
    assert _beyond("condval = i8(bool(a[0i]));") == ["types"]


def test_a_sum_in_float16_would_be_found() -> None:
    metal = "  threadgroup half part[16];\n  part[0] = (part[0] + (x_ptr[i] * w_ptr[i]));\n"
    assert sums(metal) == ["half"]
    matrices = "simdgroup_multiply_accumulate(c[0], a[0], b[1], c[0]);"
    assert sums(f"  simdgroup_half8x8 c[4];\n  {matrices}\n") == ["half"]
    opencl = "  half y[4];\n  vstore4((vload4(0, y + 0) + v_), 0, y + 0);\n"
    assert sums(opencl) == ["half"]
    webgpu = "  var y : array<f16, 4>;\n    y[0i] = fma(a, b, y[0i]);\n"
    assert sums(webgpu) == ["f16"]
    assert sums(webgpu.replace("f16", "f32")) == ["f32"]
    assert sums("  half y[4];\n  y[0] = (half)x_ptr[0];\n") == []
