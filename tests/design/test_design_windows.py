"""Nothing that Windows lacks is needed to import what is no kernel's and no compiler's.

This is all that is known of Windows: nobody ran it there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "mlc_rwkv_world"
ROOMS = ("artifact", "checkpoint", "tokenizer", "storage", "chat", "runtime", "cli")

_IMPORT = """
import importlib, os, signal, sys
import huggingface_hub, numpy, tvm_ffi  # they have ways of their own
for name in ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty"):
    sys.modules[name] = None
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "statvfs", "ST_RDONLY", "mkfifo", "getuid"):
    delattr(os, name)
del signal.SIGPIPE
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_modules_import_without_it() -> None:
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    parts = [path.relative_to(ROOT.parent).with_suffix("").parts for path in paths]
    names = [".".join(part).removesuffix(".__init__") for part in parts]
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, *names, "mlc_rwkv_world.__main__"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
