"""The entry point that TVM calls at the end of `import tvm`, in every process that imports it.

Nothing is imported here but what the interpreter has loaded anyway: most of these processes have
nothing to do with mlc_llm.
"""

from __future__ import annotations

import os

DISABLE_VARIABLE = "MLC_RWKV_WORLD_DISABLE"


def disabled() -> bool:
    """Whether the user has turned the plugin off."""
    return os.environ.get(DISABLE_VARIABLE, "") not in ("", "0")


def autoload() -> None:
    """Waits for mlc_llm, unless the plugin is turned off."""
    if not disabled():
        from mlc_rwkv_world.integration.registration import arm

        arm()
