"""The versions of RWKV that can be built."""

from __future__ import annotations

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.versions.rwkv4.version import RWKV4
from mlc_rwkv_world.versions.version import Version

VERSIONS: dict[int, Version] = {4: RWKV4}


def version_of(number: int) -> Version:
    """The version with this number; UsageError where it cannot be built."""
    try:
        return VERSIONS[number]
    except KeyError:
        known = ", ".join(str(key) for key in VERSIONS)
        raise UsageError(
            f"RWKV-{number} is not supported yet; this package builds RWKV {known}."
        ) from None
