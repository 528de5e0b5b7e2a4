"""A server's speed and fairness, beside the same model without one; see docs/serving.md.

    python benchmarks/serving.py dist/MODEL [--threads 1] [--streams 1,8,32] [--starts 1]
        [--peer http://HOST:PORT/v1 [--peer-command "llama-server -m FILE ..."]]

It starts `python -m mlc_rwkv_world serve`, and in turns measures it and the engine alone, so that
what else the machine does falls on both. Two processes that do the same differ by some percent, for
as long as they live: `--starts` starts them so many times anew. All figures are medians over all
rounds: `ratio` is the tokens per second of those that answer, over the engine's; `chat_ratio` that
of one stream over a chat's decoding, in which a token is chosen too; `cpu_ratio` tokens per second
of processor time, all that the server does counted; `total` all tokens of all answers over the time
from the first question to the last answer's end, prompts and all; `first` the seconds to an
answer's first token, the median over streams.

`--peer` is the address of another server with OpenAI's interface for the same model, of which the
same clients ask the same in the same rounds; `peer_total` and `peer_first` are its figures,
`total_ratio` and `first_ratio` ours of its. `--peer-command` starts it, and ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import h11
import httpx

_ALONE = Path(__file__).with_name("serving_alone.py")
_READY = re.compile(r"http://[^/]+/v1")
# Seconds in which a peer is ready.
_PATIENCE = 60
# What is asked begins with a number, so that nobody finds it in a cache; about 40 tokens.
_PROMPT = (
    "{}: in the year of that number a ship left the harbour for the islands of the south, with "
    "forty people and a cat. Tell what became of them, and of the cat.\n\n"
)
_SAMPLING = {
    # What llama.cpp takes where nothing is said. Random weights are much less sure of a token than
    # trained ones; without `top_k` nearly all tokens would be drawn from.
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    # The end of a text never comes.
    "logit_bias": {"0": -100},
}


@dataclass
class Streamed:
    """When an answer was asked for, and what came when, as it came.

    It is read when all is over: what a client computes meanwhile it takes from the server.
    """

    asked: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    over: bool = False

    @cached_property
    def events(self) -> list[tuple[float, dict[str, Any]]]:
        """The events of the answer, and when the last byte of each had come."""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method="POST", target="/", headers=[("Host", "localhost")]))
        reader.send(h11.EndOfMessage())
        found, rest = [], b""
        for at, piece in self.pieces:
            reader.receive_data(piece)
            while isinstance(part := reader.next_event(), h11.Response | h11.Data):
                if isinstance(part, h11.Response):
                    assert part.status_code == 200, f"the server answers {part.status_code}"
                    continue
                *lines, rest = (rest + part.data).split(b"\n")
                found += [(at, json.loads(one[6:])) for one in lines if one.startswith(b"data: {")]
        return found

    @cached_property
    def times(self) -> list[float]:
        """When texts came."""
        return [at for at, event in self.events if event["choices"]]

    @property
    def tokens(self) -> int:
        """How many tokens the answer has, as the server says; 0 while it says nothing."""
        usages = [event["usage"] for _, event in self.events if event.get("usage")]
        return int(usages[-1]["completion_tokens"]) if usages else 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.asked


class Alone:
    """The engine without a server, in a process of its own: a server's threads disturb it not."""

    def __init__(self, model: str, threads: int) -> None:
        command = [sys.executable, str(_ALONE), model, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.rate(1, 1)

    def rate(self, size: int, steps: int) -> float:
        """Tokens each second of a batch, as `bench` measures them."""
        return self._ask("steps", size, steps)

    def chat(self, tokens: int) -> float:
        """Tokens each second of an answer of its own, as `chat` shows them."""
        return self._ask("chat", _SAMPLING, tokens)

    def _ask(self, what: str, given: object, count: int) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, given, count]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()


class Client:
    """Asks a server for completions that are streamed."""

    def __init__(self, url: str, model: str | None = None) -> None:
        self._url = url
        self._model = model
        self._asked = int(time.time()) % 10**6 * 1000
        self._open = selectors.DefaultSelector()

    def body(self, tokens: int, prompt: list[int] | None = None) -> dict[str, Any]:
        """A request that none was equal to; the answer has `tokens` tokens."""
        self._asked += 1
        body = {
            "prompt": prompt or _PROMPT.format(self._asked),
            "max_tokens": tokens,
            **_SAMPLING,
            "seed": self._asked,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return body if self._model is None else {**body, "model": self._model}

    def ask(self, body: dict[str, Any]) -> Streamed:
        """Ask; what comes is noted while the client waits."""
        address, data = httpx.URL(f"{self._url}/completions"), json.dumps(body).encode()
        head = (
            f"POST {address.path} HTTP/1.1\r\nHost: {address.host}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        streamed = Streamed(time.perf_counter())
        connection = socket.create_connection((address.host, address.port or 80))
        connection.sendall(head.encode() + data)
        self._open.register(connection, selectors.EVENT_READ, streamed)
        return streamed

    def wait(self, until: Callable[[], bool]) -> None:
        """Note what comes of all that was asked."""
        while not until():
            for key, _ in self._open.select():
                assert isinstance(key.fileobj, socket.socket)
                if piece := key.fileobj.recv(1 << 16):
                    key.data.pieces.append((time.perf_counter(), piece))
                else:
                    self._leave(key)

    def leave(self) -> None:
        """Wait for nothing more."""
        for key in list(self._open.get_map().values()):
            self._leave(key)

    def _leave(self, key: selectors.SelectorKey) -> None:
        assert isinstance(key.fileobj, socket.socket)
        self._open.unregister(key.fileobj)
        key.fileobj.close()
        key.data.over = True

    def answer(self, tokens: int, prompt: list[int] | None = None) -> Streamed:
        """One answer."""
        streamed = self.ask(self.body(tokens, prompt))
        self.wait(lambda: streamed.over)
        return streamed

    def together(self, streams: int, tokens: int) -> list[Streamed]:
        """So many answers at once."""
        found = [self.ask(self.body(tokens)) for _ in range(streams)]
        self.wait(lambda: all(one.over for one in found))
        return found


def rate(found: list[Streamed]) -> float:
    """Tokens each second, from when the last one had its first token to when the first ended.

    Then all of them answer, and none is read.
    """
    begun, ended = max(one.times[0] for one in found), min(one.times[-1] for one in found)
    return sum(begun < at <= ended for one in found for at in one.times) / (ended - begun)


def total(found: list[Streamed]) -> float:
    """Tokens each second, from the first question to the end of the last answer."""
    seconds = max(one.times[-1] for one in found) - min(one.asked for one in found)
    return sum(one.tokens for one in found) / seconds


def busy(pid: int) -> float:
    """Seconds for which a process has kept cores busy."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def beside_a_long_prompt(client: Client, length: int) -> dict[str, float]:
    """How late tokens come while a long prompt is read, and how soon it is answered again.

    Of one that talks, the 99th percentile of the gaps between two tokens, in its usual gaps.
    """
    talk = client.ask(client.body(10**5))
    client.wait(lambda: len(talk.pieces) >= 40)
    first = client.answer(1, [300 + (int(time.time()) + 7 * i) % 20000 for i in range(length)])
    client.leave()
    usual = [at for at in talk.times if at < first.asked]
    beside = [at for at in talk.times if first.asked <= at <= first.times[-1]]
    step = statistics.median(b - a for a, b in pairwise(usual[5:]))
    gaps = sorted(b - a for a, b in pairwise([usual[-1], *beside]))
    alone = [300 + (int(time.time()) + 11 * i) % 20000 for i in range(length)]
    cold = client.answer(1, alone)
    warm = client.answer(1, alone)
    return {
        "step_ms": 1e3 * step,
        "p99_gap_in_steps": gaps[int(0.99 * (len(gaps) - 1))] / step,
        "largest_gap_in_steps": gaps[-1] / step,
        "first_token_beside_s": first.first,
        "first_token_s": cold.first,
        "again_share": warm.first / cold.first,
    }


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of the table."""
    sizes = [int(size) for size in options.streams.split(",")]
    rounds: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    beside = []
    for _ in range(options.starts):
        with contestants(options) as (client, serving, alone, peer):
            for size in sizes:
                rounds[size] += [
                    a_round(client, serving, alone, peer, size, options.tokens)
                    for _ in range(options.rounds)
                ]
            if options.long:
                beside.append(beside_a_long_prompt(client, options.long))
    for size in sizes:
        yield {"streams": size, **_medians(rounds[size])}
    if beside:
        yield _medians(beside)


@contextmanager
def contestants(options: argparse.Namespace) -> Iterator[tuple[Client, int, Alone, Client | None]]:
    """Our server's client and process, the engine alone, and the client of another server."""
    with ExitStack() as stack:
        url, serving = stack.enter_context(served(options.model, options.threads))
        alone = Alone(options.model, options.threads)
        stack.callback(alone.end)
        if options.peer and options.peer_command:
            stack.enter_context(started(shlex.split(options.peer_command), options.peer))
        peer = Client(options.peer, options.peer_model) if options.peer else None
        yield Client(url), serving, alone, peer


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def a_round(
    client: Client, serving: int, alone: Alone, peer: Client | None, streams: int, tokens: int
) -> dict[str, float]:
    """One measurement of each; `serving` is the number of the server's process."""
    # Once before and once after, so that a drift falls on both.
    half = tokens // 2
    chat = alone.chat(half) if streams == 1 else 0.0
    used = -busy(alone.pid), -busy(serving)
    bare = alone.rate(streams, half)
    found = client.together(streams, tokens)
    bare = (bare + alone.rate(streams, half)) / 2
    used = used[0] + busy(alone.pid), used[1] + busy(serving)
    # Tokens that each decoded, the one before the engine's clock begins too.
    counts = 2 * (half + 1), tokens
    if streams == 1:
        chat = (chat + alone.chat(half)) / 2
    lengths = [one.times[-1] - one.asked for one in found]
    figures = {
        "tokens_per_second": rate(found),
        "ratio": rate(found) / bare,
        "cpu_ratio": used[0] / counts[0] / (used[1] / counts[1]),
        "spread": max(lengths) / min(lengths),
        **_totals(found, streams * tokens),
    }
    if streams == 1:
        figures["chat_ratio"] = rate(found) / chat
    if peer is None:
        return figures
    theirs = _totals(peer.together(streams, tokens), streams * tokens)
    ratios = {f"{name}_ratio": figures[name] / theirs[name] for name in theirs}
    return {**figures, **{f"peer_{name}": value for name, value in theirs.items()}, **ratios}


def _totals(found: list[Streamed], expected: int) -> dict[str, float]:
    tokens = sum(one.tokens for one in found)
    assert tokens == expected, f"{tokens} tokens came, not {expected}"
    return {"total": total(found), "first": statistics.median(one.first for one in found)}


@contextmanager
def served(model: str, threads: int) -> Iterator[tuple[str, int]]:
    """Our server's address and the number of its process."""
    command = [sys.executable, "-m", "mlc_rwkv_world", "serve", model, "--port", "0"]
    serving = subprocess.Popen(
        [*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        ready = _READY.search(serving.stdout.readline())
        assert ready is not None, "the server did not begin"
        yield ready[0], serving.pid
    finally:
        serving.terminate()
        serving.wait()


@contextmanager
def started(command: list[str], url: str) -> Iterator[None]:
    """Another server, from when it answers until the block ends."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(10 * _PATIENCE):
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/models").is_success:
                    break
            time.sleep(0.1)
        else:
            raise AssertionError(f"{command[0]} did not answer at {url} within {_PATIENCE} s")
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure, and print a line of JSON for each row."""
    parser = argparse.ArgumentParser(description="A server's speed, beside its engine alone.")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="after each start")
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--long", type=int, default=4000, help="0 leaves it out")
    parser.add_argument("--peer", help="http://HOST:PORT/v1 of another server")
    parser.add_argument("--peer-model", help="what that calls the model")
    parser.add_argument("--peer-command", help="what starts it; without, it runs already")
    for row in measure(parser.parse_args()):
        print(json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
