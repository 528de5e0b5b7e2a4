"""What a client can do to a server, over connections that it handles itself."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process import ENDLESS, Server, chat, received, request
from support.patience import SECONDS

pytestmark = pytest.mark.slow

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STREAM = {**ENDLESS, "stream": True}
CLOSE = "Connection: close"
FRANCE = chat("What is the capital of France?")

# The limits of time are seconds, and a test should not take minutes.
HASTY = """
import sys
sys.modules["torch"] = None
from mlc_rwkv_world.serving import limits
from mlc_rwkv_world.serving.http import answering
from dataclasses import fields
defaults = limits.Limits.__init__.__defaults__
names = [field.name for field in fields(limits.Limits)]
wanted = dict(zip(names, defaults))
answering._SIGN_OF_LIFE = 0.05
wanted.update(head_seconds=1.0, body_seconds=1.0, stall_seconds=1.0, connections=64)
limits.Limits.__init__.__defaults__ = tuple(wanted[name] for name in names)
from mlc_rwkv_world.cli.serve import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def hasty(demo_artifact: Callable[[str], Path]) -> Iterator[Server]:
    """A server that waits a second for what a usual one waits longer for."""
    with Server(demo_artifact("q0f32"), script=HASTY) as running:
        yield running


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def exchange(server: Server, data: bytes) -> bytes:
    with server.raw(data) as connection:
        return received(connection)


def is_well(server: Server) -> bool:
    """Whether it answers, and holds nothing of what was before."""
    server.until_idle()
    answer = server.post(CHAT, FRANCE).json()
    return bool(answer["choices"][0]["message"]["content"] == "The capital of France is Paris.")


@pytest.mark.parametrize("events", [0, 1, 2, 5])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_goes_away_leaves_nothing(server: Server, events: int, how: str) -> None:
    connection = server.raw(request(COMPLETIONS, STREAM))
    data = b""
    while data.count(b"data: ") < events:
        data += connection.recv(1 << 16)
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    assert is_well(server)


def test_choices_of_a_step_come_in_one_piece(server: Server) -> None:
    asked = {**STREAM, "n": 3, "max_tokens": 12}
    response = exchange(server, request(COMPLETIONS, asked, CLOSE))
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    events = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        piece, body = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        events.append(piece.count(b"data: {"))
    assert max(events) >= 3


def test_a_client_that_goes_away_before_a_whole_answer_leaves_nothing(server: Server) -> None:
    connections = [server.raw(request(COMPLETIONS, ENDLESS)) for _ in range(4)]
    deadline = time.monotonic() + SECONDS
    while server.running() < 4:
        assert time.monotonic() < deadline
    for connection in connections:
        connection.close()
    assert is_well(server)


@pytest.mark.parametrize("part", [1, 30, 120, -1])
def test_half_a_request_and_then_nothing(hasty: Server, part: int) -> None:
    data = request(CHAT, FRANCE)[:part]
    # The client waits for ever: the server does not.
    response = exchange(hasty, data)
    assert response == b"" or status_of(response) == 408
    # The client goes away.
    hasty.raw(data).close()
    assert is_well(hasty)


def test_a_body_that_drips(hasty: Server) -> None:
    data = request(CHAT, FRANCE)
    head, _, body = data.partition(b"\r\n\r\n")
    connection = hasty.raw(head + b"\r\n\r\n")
    started = time.monotonic()
    with pytest.raises(OSError):
        for byte in body * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
            if time.monotonic() > started + 30:
                break
    assert time.monotonic() - started < 30
    connection.close()
    assert is_well(hasty)


def test_a_reader_that_does_not_read_is_cut_off(hasty: Server) -> None:
    connection = socket.socket()
    # A small window, so that what is sent soon has nowhere to go.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", hasty.port))
    many = {**STREAM, "n": 8, "logprobs": 20}
    connection.sendall(request(COMPLETIONS, many))
    deadline = time.monotonic() + SECONDS
    while hasty.running() == 0:
        assert time.monotonic() < deadline
    hasty.until_idle()
    connection.close()
    assert is_well(hasty)


def test_a_stream_says_that_it_is_alive(hasty: Server) -> None:
    """While its prompt is read, again and again."""
    long = {"prompt": [300 + i % 999 for i in range(8000)], "max_tokens": 9, "stream": True}
    stream = exchange(hasty, request(COMPLETIONS, long, CLOSE))
    before, _, rest = stream.partition(b"data: ")
    assert before.count(b": alive\n\n") >= 2 and b"data: [DONE]" in rest


def test_idle_connections_harm_nobody(hasty: Server) -> None:
    idle = []
    for _ in range(200):
        idle.append(socket.create_connection(("127.0.0.1", hasty.port)))
    assert is_well(hasty)
    for connection in idle:
        connection.settimeout(SECONDS)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        connection.close()


def test_two_thousand_idle_connections_harm_nobody(server: Server) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4200:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4200), hard))
    idle = []
    try:
        for _ in range(2000):
            idle.append(socket.create_connection(("127.0.0.1", server.port)))
        assert is_well(server)
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert is_well(server)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe{}",
        b'{"messages": "\xed\xa0\x80"}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": NaN, "messages": []}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "x"}]}',
        b'{"max_tokens": 1' + b"0" * 5000 + b', "messages": [{"role": "user", "content": "x"}]}',
        b'{"a": ' + b"[" * 100000 + b"]" * 100000 + b"}",
        b'{"messages": {"role": "user"}}',
        b'{"messages": [1, 2]}',
        b'{"messages": [{"role": "user", "content": 5}]}',
        b'{"messages": [{"role": 5, "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": {"a": 1}}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": 1.5}',
        b"{}",
        b'{"messages": null} trailing',
        b"{'messages': []}",
    ],
)
def test_bad_bodies_are_refused(server: Server, body: bytes) -> None:
    response = exchange(server, request(CHAT, body, CLOSE))
    assert status_of(response) == 400, response[:300]
    error = json.loads(response.partition(b"\r\n\r\n")[2])["error"]
    assert error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "status"),
    [
        ([], 400),
        ([[]], 400),
        ("", 400),
        ([""], 400),
        ([-1], 400),
        ([65530], 400),
        ([1 << 40], 400),
        ([True], 400),
        (["x", 5], 400),
        ([["x"]], 400),
        (["x"] * 1000, 400),
        ({"a": 1}, 400),
        ("x " * 10**6, 400),
        ("x" * (17 << 20), 413),
    ],
    ids=range(14),
)
def test_bad_prompts_are_refused(server: Server, prompt: object, status: int) -> None:
    response = server.post(COMPLETIONS, {"prompt": prompt})
    assert response.status_code == status, response.text[:300]
    assert response.json()["error"]["message"]


def test_a_long_prompt_stops_nobody(server: Server) -> None:
    """Others get their tokens while 20,000 tokens are read."""
    long = {"prompt": [300 + i % 999 for i in range(20000)], "max_tokens": 1}
    with server.raw(request(COMPLETIONS, STREAM)) as streaming:
        streaming.recv(1 << 16)
        reading = threading.Thread(target=lambda: server.post(COMPLETIONS, long))
        reading.start()
        counts = []
        while reading.is_alive():
            counts.append(streaming.recv(1 << 16).count(b"data: "))
        reading.join()
    assert sum(counts) > 20
    assert is_well(server)


def test_only_json_is_taken(server: Server) -> None:
    """What a page of another site could post without being asked."""
    data = json.dumps(FRANCE).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        response = server.post(CHAT, content=data, headers={"content-type": kind})
        assert response.status_code == 415
    kind = "application/json; charset=utf-8"
    assert server.post(CHAT, content=data, headers={"content-type": kind}).status_code == 200


def test_only_its_own_names_are_answered(server: Server) -> None:
    for host, status in (
        ("localhost", 200),
        (f"LocalHost:{server.port}", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        (f"evil.example:{server.port}", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ):
        data = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n{CLOSE}\r\n\r\n".encode()
        assert status_of(exchange(server, data)) == status, host


def test_no_other_site_may_read(server: Server) -> None:
    response = server.get("/v1/models", headers={"origin": "http://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + b"X: " + b"y" * 200000 + b"\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=range(6),
)
def test_what_is_no_http_ends_the_connection(server: Server, data: bytes) -> None:
    response = exchange(server, data)
    assert response == b"" or 400 <= status_of(response) < 500
    assert is_well(server)


def test_paths_lead_nowhere(server: Server) -> None:
    for path in (
        "/v1/states/..%2f..%2fetc%2fpasswd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/../../../../etc/passwd",
        "/page/../../../pyproject.toml",
        "/v1/none",
    ):
        data = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{CLOSE}\r\n\r\n".encode()
        response = exchange(server, data)
        assert status_of(response) == 404 and b"error" in response
    assert server.get("/v1/completions").status_code == 405


def test_requests_can_follow_each_other_at_once(server: Server) -> None:
    data = request(COMPLETIONS, {"prompt": "1 2 3", "max_tokens": 2, "temperature": 0})
    last = request(COMPLETIONS, {"prompt": "1 2 3", "max_tokens": 2, "temperature": 0}, CLOSE)
    response = exchange(server, data + data + last)
    assert response.count(b"HTTP/1.1 200") == 3


def test_curl(server: Server) -> None:
    def curl(*arguments: str) -> str:
        return subprocess.run(
            ["curl", "-sS", "--max-time", str(SECONDS), *arguments],
            check=True,
            capture_output=True,
            encoding="utf-8",
        ).stdout

    json_type = ("-H", "Content-Type: application/json")
    body = json.dumps(FRANCE)
    answer = json.loads(curl(*json_type, "-d", body, server.url + CHAT))
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    stream = curl("-N", *json_type, "-d", json.dumps({**FRANCE, "stream": True}), server.url + CHAT)
    assert stream.endswith("data: [DONE]\n\n")
    assert json.loads(curl("-d", body, server.url + CHAT))["error"]["code"] == "media_type"
    # As curl sends larger bodies: it asks first.
    large = json.dumps({**FRANCE, "user": "x" * 5000})
    expect = ("-H", "Expect: 100-continue")
    assert "Paris" in curl(*json_type, *expect, "-d", large, server.url + CHAT)
    chunked = ("-H", "Transfer-Encoding: chunked")
    assert "Paris" in curl(*json_type, *chunked, "-d", body, server.url + CHAT)
