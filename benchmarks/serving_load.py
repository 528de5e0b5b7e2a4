"""Many clients of all kinds on a server for minutes: is anything lost, or left behind?

    python -m mlc_rwkv_world serve dist/MODEL --slots 8 --cache 8M &
    locust -f benchmarks/serving_load.py --headless --host http://127.0.0.1:8000 \
        --users 12 --spawn-rate 12 --run-time 10m

A file for locust. It prints, each minute and once all have gone, what has a slot or waits, and the
server's memory where `SERVER_PID` names its process; locust prints requests, failures and times. An
answer that is not what was asked for is a failure; so is one that does not come.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import requests
from locust import HttpUser, between, events, task

CHAT, COMPLETIONS, STATES = "/v1/chat/completions", "/v1/completions", "/v1/states"
_ENDLESS = {"prompt": "1 2 3", "max_tokens": 20000, "logit_bias": {"0": -100}, "stream": True}
_numbers = itertools.count()


def question(**more: Any) -> dict[str, Any]:
    """The body of a short chat."""
    asked = f"What is {random.randint(0, 9)} plus {random.randint(0, 9)}?"
    return {"messages": [{"role": "user", "content": asked}], "max_tokens": 20, **more}


def lines_of(response: Any) -> Iterator[bytes]:
    """The lines of a stream; none where there was no connection."""
    return response.iter_lines() if response.status_code else iter(())


class Client(HttpUser):
    """Somebody who does one thing after another."""

    wait_time = between(0.2, 1.0)

    def ask(self, path: str, body: Any, name: str, status: int = 200) -> Any:
        """The answer, which has to have this status."""
        with self.client.post(path, json=body, name=name, catch_response=True) as response:
            if response.status_code != status:
                response.failure(f"{response.status_code}, not {status}: {response.text[:200]}")
                return {}
            response.success()
            return response.json()

    def check(self, right: bool, name: str, what: str) -> None:
        """A failure named `name`, where an answer is not right."""
        if not right:
            events.request.fire(
                request_type="CHECK",
                name=name,
                response_time=0,
                response_length=0,
                exception=AssertionError(what),
            )

    @task(3)
    def chat(self) -> None:
        answer = self.ask(CHAT, question(), "chat")
        self.check(bool(answer.get("choices")), "chat", "no answer")

    @task(3)
    def stream(self) -> None:
        body = question(stream=True)
        with self.client.post(
            CHAT, json=body, name="stream", stream=True, catch_response=True
        ) as response:
            lines = [line for line in lines_of(response) if line]
            if not lines or lines[-1] != b"data: [DONE]" or b"error" in b"".join(lines):
                response.failure(f"ends in {lines[-1:]}")

    @task(2)
    def leave(self) -> None:
        with self.client.post(
            COMPLETIONS, json=_ENDLESS, name="leave", stream=True, catch_response=True
        ) as response:
            came = list(itertools.islice(lines_of(response), random.randint(1, 20)))
            if response.status_code != 200 or not came:
                response.failure(f"{response.status_code}, {len(came)} lines")
            response.close()

    @task
    def long(self) -> None:
        number = next(_numbers)
        ids = [300 + (number * 31 + i) % 20000 for i in range(1500)]
        answer = self.ask(COMPLETIONS, {"prompt": ids, "max_tokens": 2}, "1500 tokens")
        self.check(answer.get("usage", {}).get("prompt_tokens") == 1500, "1500 tokens", "lost some")

    @task
    def many(self) -> None:
        body = {"prompt": "One two", "n": 4, "max_tokens": 5, "seed": next(_numbers)}
        answer = self.ask(COMPLETIONS, body, "n = 4")
        self.check(len(answer.get("choices", ())) == 4, "n = 4", "lost a choice")

    @task
    def bad(self) -> None:
        self.ask(CHAT, {"messages": next(_numbers)}, "bad", status=400)

    @task
    def state(self) -> None:
        made = self.ask(STATES, {"prompt": f"{next(_numbers)} is a number."}, "state")
        asked = {"prompt": " It", "state": made.get("id"), "max_tokens": 3}
        self.ask(COMPLETIONS, asked, "from a state")
        with self.client.delete(
            f"{STATES}/{made.get('id')}", name="state", catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(response.text[:200])


@events.test_start.add_listener
def begin(environment: Any, **_: Any) -> None:
    """Report each minute."""

    def report() -> None:
        for minute in itertools.count():
            say(environment, f"minute {minute}")
            gevent.sleep(60)

    gevent.spawn(report)


@events.test_stop.add_listener
def end(environment: Any, **_: Any) -> None:
    """Report once nobody asks any more."""
    time.sleep(2)
    say(environment, "at the end")


def say(environment: Any, when: str) -> None:
    """Print what there is."""
    lines = requests.get(f"{environment.host}/metrics", timeout=60).text.splitlines()
    wanted = (
        *("num_requests_running", "num_requests_waiting", "request_failure_total"),
        "kv_cache_usage_perc",
    )
    found = {
        name: sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(f"vllm:{name}{{"))
        for name in wanted
    }
    if pid := os.environ.get("SERVER_PID"):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        # Flat once the cache is full.
        found["MB"] = round(int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    print(json.dumps({"when": when, "requests": environment.stats.total.num_requests, **found}))
