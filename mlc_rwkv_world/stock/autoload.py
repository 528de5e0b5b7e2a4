"""The entry point that TVM calls at the end of `import tvm`, in every process that imports it.

Most of these processes have nothing to do with mlc_llm, so nothing is imported here but what the
interpreter has loaded anyway; the rest follows with the first module of mlc_llm.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

from mlc_rwkv_world.stock import PACKAGE
from mlc_rwkv_world.stock.import_hook import ImportHook

DISABLE_VARIABLE = "MLC_RWKV_WORLD_DISABLE"


def disabled() -> bool:
    """Whether the user has turned the plugin off."""
    return os.environ.get(DISABLE_VARIABLE, "") not in ("", "0")


def autoload() -> None:
    """Waits for mlc_llm, unless the plugin is turned off."""
    if not disabled():
        arm()


def arm() -> None:
    """Waits for the host's modules, and sees to those that are there already."""
    _hook.install()
    if PACKAGE in sys.modules:
        from mlc_rwkv_world.stock import steps

        steps.catch_up()


def armed() -> bool:
    """Whether this process waits for the host's modules."""
    return _hook in sys.meta_path


def _before(module: ModuleType) -> None:
    from mlc_rwkv_world.stock import steps

    steps.before(module)


def _after(module: ModuleType) -> None:
    from mlc_rwkv_world.stock import steps

    steps.after(module)


def _failed(module: ModuleType, error: BaseException) -> None:
    from mlc_rwkv_world.stock import steps

    steps.failed(module, error)


_hook = ImportHook(PACKAGE, _before, _after, _failed)
