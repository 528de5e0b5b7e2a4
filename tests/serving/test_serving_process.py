"""How a server begins and ends, who may ask it, and what it does when its engine breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from process import ENDLESS, Server, chat, request
from support.patience import SECONDS

pytestmark = pytest.mark.slow

FRANCE = chat("What is the capital of France?")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# An answer that ends by itself, after some time.
LONG = {**ENDLESS, "max_tokens": 400, "stream": True}

# The engine breaks while it decodes, once a file is there.
BREAKING = """
import sys
from pathlib import Path
sys.modules["torch"] = None
from mlc_rwkv_world.runtime.engine import Engine
decode = Engine.decode_batch
def breaking(self, *arguments):
    if Path(sys.argv[1]).exists():
        raise RuntimeError("the device is gone")
    return decode(self, *arguments)
Engine.decode_batch = breaking
from mlc_rwkv_world.cli.serve import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def model(demo_artifact: Callable[[str], Path]) -> Path:
    return demo_artifact("q0f32")


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, where it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "mlc_rwkv_world", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **environment},
    )


class Stream:
    """A stream that another thread reads to its end."""

    def __init__(self, server: Server, body: Any) -> None:
        self.data = b""
        self.begun = threading.Event()
        self._connection = server.raw(request(COMPLETIONS, body))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self._connection as connection:
            while part := connection.recv(1 << 16):
                self.data += part
                if b"data: " in self.data:
                    self.begun.set()

    def end(self) -> bytes:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.data


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_end(model: Path, number: int) -> None:
    server = Server(model, "--threads", "1")
    stream = Stream(server, LONG)
    assert stream.begun.wait(SECONDS)
    # A connection on which nothing is asked keeps nobody.
    idle = server.raw(b"")
    status, _, complaints = server.end(number)
    assert (status, complaints) == (0, "")
    assert b'"finish_reason":"length"' in stream.end()
    assert stream.data.rstrip().endswith(b"0") and b"data: [DONE]" in stream.data
    idle.close()
    with pytest.raises(httpx.ConnectError):
        server.get("/health")


def test_a_second_signal_ends_it_at_once(model: Path) -> None:
    server = Server(model)
    stream = Stream(server, {**ENDLESS, "stream": True})
    assert stream.begun.wait(SECONDS)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.process.poll() is None
    started = time.monotonic()
    status, *_ = server.end(signal.SIGINT)
    assert status == 0 and time.monotonic() - started < 20
    assert b"[DONE]" not in stream.end()


def test_what_does_not_end_in_time_is_ended(model: Path) -> None:
    server = Server(model, "--drain", "1")
    stream = Stream(server, {**ENDLESS, "stream": True})
    assert stream.begun.wait(SECONDS)
    status, *_ = server.end()
    assert status == 0
    assert b"[DONE]" not in stream.end()


def test_an_engine_that_breaks_tells_everybody_and_ends(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "break"
    server = Server(mark, str(model), script=BREAKING)
    stream = Stream(server, {**ENDLESS, "stream": True})
    assert stream.begun.wait(SECONDS)
    whole: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: whole.append(server.post(COMPLETIONS, ENDLESS)))
    waiting.start()
    while server.running() < 2:
        time.sleep(0.02)
    mark.touch()
    status, _, complaints = server.wait()
    assert status == 70 and "the device is gone" in complaints
    assert "Traceback" not in complaints
    waiting.join(SECONDS)
    assert whole[0].status_code == 503
    assert "device is gone" in whole[0].json()["error"]["message"]
    last = [line for line in stream.end().split(b"\n") if line.startswith(b"data: ")][-1]
    assert "device is gone" in json.loads(last[6:])["error"]["message"]


def test_a_key_is_asked_for(model: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame\n")
    for arguments, environment in (
        (("--api-key-file", str(key), "--host", "0.0.0.0"), {}),
        ((), {"MLC_RWKV_WORLD_API_KEY": "sesame"}),
    ):
        with Server(model, *arguments, **environment) as server:
            for given in ({}, {"authorization": "Bearer sesam"}, {"authorization": "sesame"}):
                for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/states"):
                    response = server.get(path, headers=given)
                    assert response.status_code == 401, path
                    assert response.json()["error"]["code"] == "invalid_api_key"
                assert server.post(CHAT, FRANCE, headers=given).status_code == 401
            assert server.get("/health").status_code == 200
            right = {"authorization": "Bearer sesame"}
            assert server.get("/v1/models", headers=right).status_code == 200
            assert server.post(CHAT, FRANCE, headers=right).status_code == 200


def test_other_machines_need_a_key(model: Path) -> None:
    found = command(str(model), "--host", "0.0.0.0")
    assert found.returncode == 2 and "no key" in found.stderr and not found.stdout


def test_what_cannot_be_served_is_one_line(model: Path, tmp_path: Path, server: Server) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for arguments, words in (
        ((str(tmp_path / "none"),), "No artifact"),
        ((str(model), "--port", str(server.port)), "in use"),
        ((str(model), "--port", "70000"), "port"),
        ((str(model), "--host", "no.such.host.invalid", "--api-key-file", str(empty)), "key"),
        ((str(model), "--api-key-file", str(empty)), "key"),
        ((str(model), "--api-key-file", str(tmp_path / "none")), "none"),
        ((str(model), "--cache", "many"), "--cache"),
        ((str(model), "--slots", "0", "--port", "0"), "slots"),
        ((str(model), "--timeout", "-1", "--port", "0"), "request_seconds"),
        ((str(model), "--template", "none", "--port", "0"), "template"),
    ):
        found = command(*arguments)
        assert found.returncode != 0 and words in found.stderr, (arguments, found.stderr)
        assert len(found.stderr.splitlines()) <= 3 and "Traceback" not in found.stderr


def test_without_its_extra_it_says_what_to_install(model: Path) -> None:
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'fastapi' else find(name, *a)\n"
        "from mlc_rwkv_world.cli.serve import main\n"
        "sys.exit(main(['x']))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 10
    (line,) = found.stderr.splitlines()
    assert "fastapi" in line and "pip install 'mlc-rwkv-world[serve]'" in line


def test_sites_that_are_named_may_use_it(model: Path) -> None:
    site, own = "https://chat.example", {"host": "llm.example"}
    with Server(model, "--allow-origin", site, "--allow-host", "llm.example") as server:
        headers = {
            "origin": site,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        response = httpx.options(server.url + CHAT, headers=headers)
        assert response.headers["access-control-allow-origin"] == site
        response = httpx.options(server.url + CHAT, headers={**headers, "origin": "https://a.b"})
        assert response.status_code == 400
        assert server.post(CHAT, FRANCE, headers={"origin": site, **own}).status_code == 200
        assert server.get("/v1/models", headers=own).status_code == 200


def test_a_cache_outlives_a_server(model: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    cached = []
    for _ in range(2):
        with Server(model, "--cache-folder", folder) as server:
            answer = server.post(CHAT, FRANCE).json()
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0 and cached[1] == answer["usage"]["prompt_tokens"] - 1


def test_a_full_queue_says_so(model: Path) -> None:
    with Server(model, "--slots", "1", "--queue", "1") as server:
        open_ones = [server.raw(request(COMPLETIONS, ENDLESS)) for _ in range(2)]
        while server.running() + server.figure("vllm:num_requests_waiting") < 2:
            time.sleep(0.02)
        response = server.post(COMPLETIONS, ENDLESS)
        assert response.status_code == 429 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "busy"
        for connection in open_ones:
            connection.close()
        server.until_idle()


def test_time_is_limited(model: Path) -> None:
    with Server(model, "--timeout", "1") as server:
        answer = server.post(COMPLETIONS, ENDLESS).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 0 < answer["usage"]["completion_tokens"] < ENDLESS["max_tokens"]
