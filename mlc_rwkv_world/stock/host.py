"""Finding stock mlc_llm without importing it."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mlc_rwkv_world.stock import PACKAGE

# What the plugin was run with; see docs/plugin.md. mlc_llm's source says 0.1, its builds 0.20.
KNOWN_VERSIONS = ("0.20",)


@dataclass(frozen=True)
class Host:
    """An mlc_llm: its folder, and the version that its distribution gives it, if it has one."""

    folder: Path
    version: str | None

    @property
    def tested(self) -> bool:
        """Whether the plugin was run with this version; one without a version counts as tested."""
        return self.version is None or self.version.startswith(KNOWN_VERSIONS)


def find_host() -> Host | None:
    """The mlc_llm that `import mlc_llm` would load, or None.

    Our own wheel brings a folder `mlc_llm` without `__init__.py`, so being importable proves
    nothing: a host's package has one.
    """
    loaded = sys.modules.get(PACKAGE)
    spec = loaded.__spec__ if loaded is not None else find_spec(PACKAGE)
    if spec is None or spec.origin is None or Path(spec.origin).stem != "__init__":
        return None
    return Host(Path(spec.origin).parent, host_version())


@functools.cache
def host_version() -> str | None:
    """The version of the distribution that installed it; None for a checkout."""
    from importlib.metadata import distributions

    # Its wheels are called mlc-llm-cpu, mlc-llm-cu123, mlc-llm-nightly-..., a checkout mlc_llm.
    for distribution in distributions():
        name = (distribution.name or "").lower().replace("_", "-")
        if name == "mlc-llm" or name.startswith("mlc-llm-"):
            return str(distribution.version)
    return None


def our_portion() -> Path | None:
    """The folder `mlc_llm` that lies beside our package and holds `build.py`."""
    folder = Path(__file__).resolve().parents[2] / PACKAGE
    return folder if (folder / "build.py").is_file() else None


def share_path() -> None:
    """Lets a host's package find our `mlc_llm/build.py`, where it lies in another folder."""
    package = sys.modules.get(PACKAGE)
    path = getattr(package, "__path__", None)
    portion = our_portion()
    # Without a host the interpreter's own list of portions is kept by the interpreter.
    if isinstance(path, list) and portion is not None and str(portion) not in path:
        path.append(str(portion))
