"""Nothing that Windows lacks is needed to import a module, to chat or to serve.

This is all that is known of Windows: nobody ran it there. Compiling calls TVM's compiler and a
linker, of which nothing is known there.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "mlc_rwkv_world"
# Written for a harness that the suite does without.
OTHERS = {"mlc_rwkv_world.adapters.lm_eval"}

# What others import has ways of its own, and comes first.
_WITHOUT = """
import importlib, mmap, os, signal, sys
import fastapi, huggingface_hub, numpy, prompt_toolkit, tvm, tvm_ffi, uvicorn
for name in ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty"):
    sys.modules[name] = None
for name in (
    "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK ST_RDONLY chown fchmod fork getgid getuid getpgid "
    "killpg mkfifo posix_fallocate pread pwrite register_at_fork sched_getaffinity setsid statvfs "
    "sysconf ttyname uname wait4"
).split():
    vars(os).pop(name, None)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1"):
    vars(signal).pop(name, None)
for name in [name for name in vars(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))]:
    delattr(mmap, name)
"""
_IMPORT = "for name in sys.argv[1:]:\n    importlib.import_module(name)\n"
_MAIN = "from mlc_rwkv_world.__main__ import main\nsys.exit(main())\n"


@pytest.mark.slow
def test_every_module_imports_without_it() -> None:
    parts = [p.relative_to(ROOT.parent).with_suffix("").parts for p in sorted(ROOT.rglob("*.py"))]
    names = {".".join(part).removesuffix(".__init__") for part in parts}
    assert len(names) > 200 and names > OTHERS
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT + _IMPORT, *sorted(names - OTHERS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_model_answers_without_it(demo_artifact: Callable[[str], Path], tmp_path: Path) -> None:
    question = ["--prompt", "What is the capital of France?", "--top-k", "1"]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT + _MAIN, "chat", str(demo_artifact("q4f16_1")), *question],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n"), done.stderr


@pytest.mark.slow
def test_a_server_serves_without_it(demo_artifact: Callable[[str], Path]) -> None:
    arguments = ["serve", str(demo_artifact("q4f16_1")), "--port", "0", "--no-page"]
    command = [sys.executable, "-c", _WITHOUT + _MAIN, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        place = re.search(r"http://\S+/v1", server.stdout.readline())
        try:
            assert place is not None
            with urllib.request.urlopen(f"{place[0]}/models") as answer:
                assert b'"list"' in answer.read()
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
