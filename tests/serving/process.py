"""A real server process, and ways to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from support.patience import SECONDS

_READY = re.compile(r"served as (\S+) at http://([^:]+|\[.*\]):(\d+)/v1")


class Server:
    """`python -m mlc_rwkv_world serve` on a free port, until the block ends."""

    def __init__(
        self, model: Path, *arguments: str, script: str | None = None, **environment: str
    ) -> None:
        """`script` is run instead of the command, with its arguments."""
        start = ["-c", script] if script is not None else ["-m", "mlc_rwkv_world", "serve"]
        self.process = subprocess.Popen(
            [sys.executable, *start, str(model), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TVM_NUM_THREADS": "1", **environment},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = _READY.search(line)
        if found is None:
            self.process.kill()
            raise AssertionError(f"{line!r} {self.process.communicate(timeout=SECONDS)}")
        self.name, self.port = found[1], int(found[3])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            status, _, complaints = self.end()
            assert (status, complaints) == (0, ""), complaints

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal, and give the exit status, what it printed and what it complained of."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        """What `end` gives, once the process ends by itself."""
        output, complaints = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, output, complaints

    def get(self, path: str, **more: Any) -> httpx.Response:
        """The response to GET."""
        return httpx.get(self.url + path, timeout=SECONDS, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """The response to POST of a JSON body."""
        given = {} if body is None else {"json": body}
        return httpx.post(self.url + path, timeout=SECONDS, **given, **more)

    def raw(self, data: bytes) -> socket.socket:
        """A connection on which `data` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        connection.sendall(data)
        return connection

    def running(self) -> int:
        """How many requests have a slot."""
        return self.figure("vllm:num_requests_running")

    def figure(self, name: str) -> int:
        """A figure of /metrics, summed over its labels."""
        lines = self.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(name + "{")]
        return int(sum(float(line.rpartition(" ")[2]) for line in found))

    def until_idle(self) -> None:
        """Wait until no request has a slot."""
        deadline = time.monotonic() + SECONDS
        while self.running():
            assert time.monotonic() < deadline, "a slot was not given back"
            time.sleep(0.02)


def request(path: str, body: Any, *headers: str) -> bytes:
    """A POST as it goes over a connection."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, or breaks off because it reads no more."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            data += part
    return data


def chat(message: str, **more: Any) -> dict[str, Any]:
    """The body of a chat with one message."""
    return {"messages": [{"role": "user", "content": message}], "temperature": 0, **more}


# An answer that does not end by itself: it goes on until it is stopped.
ENDLESS = {"prompt": "1 2 3", "max_tokens": 20000, "logit_bias": {"0": -100}, "temperature": 0}
