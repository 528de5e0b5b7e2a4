"""Tint, the compiler of Chromium's WebGPU, in a Chromium of this machine.

On a machine without a GPU its adapter is SwiftShader, which lacks `shader-f16`.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from functools import cache

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
_PATIENCE = 120_000
# A page that is local may have a GPU; nobody listens there, and nobody is asked.
_PAGE = "http://localhost:9/"
_COMPILE = """async ({sources, float16}) => {
  const adapter = navigator.gpu && await navigator.gpu.requestAdapter();
  if (!adapter || (float16 && !adapter.features.has("shader-f16"))) return null;
  const device = await adapter.requestDevice({requiredFeatures: float16 ? ["shader-f16"] : []});
  const found = {};
  for (const [name, code] of Object.entries(sources)) {
    const {messages} = await device.createShaderModule({code}).getCompilationInfo();
    const faults = messages.map((one) => `${one.type} in line ${one.lineNum}: ${one.message}`);
    if (faults.length) found[name] = faults;
  }
  return found;
}"""
_VALID = "@compute @workgroup_size(1) fn f() { _ = 1u; }"


def _executable() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@cache
def missing() -> str | None:
    """Why there is no Tint here; None where there is."""
    if importlib.util.find_spec("playwright") is None:
        return "Tint: playwright is not installed"
    if _executable() is None:
        return "Tint: no Chromium"
    return None if faults({"f": _VALID}) == {} else "Tint: this Chromium has no WebGPU"


def has_float16() -> bool:
    """Whether it takes kernels that compute in float16."""
    return faults({"f": _VALID}, float16=True) == {}


def faults(sources: Mapping[str, str], *, float16: bool = False) -> dict[str, list[str]] | None:
    """What it says of shaders, where it says anything; None where there is no such adapter."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # What it opens is ours; a sandbox needs rights that containers lack.
        browser = playwright.chromium.launch(
            executable_path=_executable(),
            chromium_sandbox=False,
            args=list(_FLAGS),
            timeout=_PATIENCE,
        )
        page = browser.new_page()
        page.set_default_timeout(_PATIENCE)
        page.route("**/*", lambda route: route.fulfill(body="", content_type="text/html"))
        page.goto(_PAGE)
        found = page.evaluate(_COMPILE, {"sources": dict(sources), "float16": float16})
        browser.close()
    return None if found is None else {name: list(said) for name, said in found.items()}
