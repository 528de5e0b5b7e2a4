"""The source that is generated for GPUs without one: sums are float32, in every kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import pytest
import tvm
from support.modules import CHANGES, small_config, small_module
from tvm import IRModule, tirx
from tvm.target import Target

from mlc_rwkv_world.compiler import metadata, pipeline
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.target import BuildTarget, host, resolve
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.storage import format_named
from mlc_rwkv_world.tvm_names import name_of

KINDS = ("metal", "opencl", "webgpu")
FORMATS = ("q0f16", "q8f16_1", "q4f16_1")

_DECLARED = re.compile(
    r"\b(?:simdgroup_)?(half|float|u?int|u?long|u?char|bool)(?:\d|8x8)?\*? (?:restrict )?(\w+)"
    r"|\bvar(?:<[^>]*>)? (\w+) : (?:array<)?(?:vec\d<)?(\w+)"
)
_ASSIGNED = re.compile(r"^ +([^=;\n]+) = (.+);$", re.M)
_STORED = re.compile(r"^ +vstore\d\((.+), \d+, ([^,]+)\);$", re.M)
_MATRICES = re.compile(r"simdgroup_multiply_accumulate\((\w+)\[[^,]+, .+, (\w+)\[[^,]+\)")


def build_target(kind: str) -> BuildTarget:
    # Browsers' libraries are mlc_llm's to build: it says what the host is.
    return (
        BuildTarget(Target({"kind": kind, "host": host()})) if kind == "webgpu" else resolve(kind)
    )


@cache
def sources(kind: str, quantization: str, version: int = 4) -> dict[str, str]:
    """The source of each kernel of a model that computes one block in float16, one in float32."""
    changes = CHANGES[version]
    config, fmt, target = (
        small_config(**changes, fp32_layers=(1,)),
        format_named(quantization),
        build_target(kind),
    )
    described = metadata.describe(config, fmt, parameters(config, fmt), target, "float16")
    mod = small_module(quantization, "float16", **changes, fp32_layers=(1,))
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
@pytest.mark.parametrize(
    "version, quantization",
    [
        *((4, fmt) for fmt in FORMATS),
        *((version, "q4f16_1") for version in (5, 6, 7)),
        (7, "q0f16"),
    ],
)
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


# Default limit of storage buffers in one shader stage.
_WEBGPU_BUFFERS = 8


@pytest.mark.slow
@pytest.mark.parametrize("quantization", FORMATS)
def test_what_webgpu_lacks(quantization: str) -> None:
    """Arrays of booleans; and buffers, of which the recurrence binds more than browsers give."""
    kernels = sources("webgpu", quantization)
    assert not any(re.search(r"array<(i8|bool)", text) for text in kernels.values())
    count = {name: text.count("var<storage") for name, text in kernels.items()}
    beyond = {name for name, buffers in count.items() if buffers > _WEBGPU_BUFFERS}
    assert beyond == {"wkv_whole_kernel", "wkv_step_kernel"}


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
