"""Registering RWKV World with stock mlc_llm, as its user or mlc_llm itself asks for it."""

from __future__ import annotations

from mlc_rwkv_world.stock.autoload import arm
from mlc_rwkv_world.stock.host import KNOWN_VERSIONS, find_host
from mlc_rwkv_world.stock.steps import tell


def register() -> None:
    """Makes mlc_llm handle `rwkv_world`: now where it is imported, else as soon as it is.

    Calling it again does nothing. Never raises: what cannot be done is said in one line.
    """
    host = find_host()
    if host is None:
        tell(
            "mlc_llm is not installed here, so there is nothing to register with. "
            "`python -m mlc_rwkv_world build` and `mlc_chat_cli` need none."
        )
    elif not host.tested:
        tell(
            f"mlc_llm {host.version} is unknown to this package (tested: "
            f"{', '.join(KNOWN_VERSIONS)}). It is tried all the same; "
            "`python -m mlc_rwkv_world doctor` says how that went."
        )
    arm()
