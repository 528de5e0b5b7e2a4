"""Many clients that do all kinds of things at once: nothing is lost, nothing stays."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process import ENDLESS, Server, chat, received, request

pytestmark = pytest.mark.slow

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CLIENTS, ROUNDS = 12, 20
# Bytes that the process may have more after the second half than after the first: a cache grows.
GROWTH = 24 << 20


def resident(server: Server) -> int:
    pages = Path(f"/proc/{server.process.pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def act(server: Server, number: int) -> str:
    """One thing that a client does, by its number; what it was."""
    chance = random.Random(number)
    kind = chance.choice(
        ["chat", "chat", "stream", "leave", "long", "bad", "half", "many", "state"]
    )
    question = f"What is {chance.randint(0, 9)} plus {chance.randint(0, 9)}?"
    if kind == "chat":
        answer = server.post(CHAT, chat(question, max_tokens=20)).json()
        assert answer["choices"][0]["message"]["content"]
    elif kind == "stream":
        body = chat(question, stream=True, max_tokens=20)
        with server.raw(request(CHAT, body, "Connection: close")) as connection:
            assert received(connection).count(b"[DONE]") == 1
    elif kind == "leave":
        with server.raw(request(COMPLETIONS, {**ENDLESS, "stream": True})) as connection:
            for _ in range(chance.randint(1, 5)):
                assert connection.recv(4096)
    elif kind == "long":
        ids = [300 + (number * 31 + i) % 20000 for i in range(1500)]
        answer = server.post(COMPLETIONS, {"prompt": ids, "max_tokens": 2}).json()
        assert answer["usage"]["prompt_tokens"] == 1500
    elif kind == "bad":
        assert server.post(CHAT, {"messages": number}).status_code == 400
    elif kind == "half":
        data = request(CHAT, chat(question))
        server.raw(data[: chance.randint(1, len(data) - 1)]).close()
    elif kind == "many":
        body = {"prompt": question, "n": 4, "max_tokens": 5, "seed": number, "temperature": 1}
        assert len(server.post(COMPLETIONS, body).json()["choices"]) == 4
    else:
        made = server.post("/v1/states", {"prompt": question}).json()
        asked = {"prompt": " It", "state": made["id"], "max_tokens": 3}
        assert server.post(COMPLETIONS, asked).status_code == 200
        with server.raw(
            f"DELETE /v1/states/{made['id']} HTTP/1.1\r\nHost: localhost\r\n"
            "Connection: close\r\n\r\n".encode()
        ) as connection:
            assert json.loads(received(connection).partition(b"\r\n\r\n")[2])["deleted"]
    return kind


def test_all_kinds_of_clients_at_once(server: Server) -> None:
    question = chat("What is the capital of France?")
    before = server.post(CHAT, question).json()["choices"][0]
    # Other tests on this server may have broken off requests.
    failed = server.figure("vllm:request_failure_total")
    done: Counter[str] = Counter()
    sizes = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for part in range(2):
            numbers = range(part * CLIENTS * ROUNDS // 2, (part + 1) * CLIENTS * ROUNDS // 2)
            done.update(pool.map(lambda number: act(server, number), numbers))
            server.until_idle()
            sizes.append(resident(server))
    assert done.total() == CLIENTS * ROUNDS and len(done) == 8
    assert server.figure("vllm:num_requests_waiting") == 0
    assert server.get("/v1/states").json()["data"] == []
    assert server.figure("vllm:request_failure_total") == failed
    assert sizes[1] - sizes[0] < GROWTH, sizes
    assert server.post(CHAT, question).json()["choices"][0] == before
