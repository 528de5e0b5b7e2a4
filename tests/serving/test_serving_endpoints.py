"""Endpoints beside those for answers: states, tokens, figures, the description of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from process import Server, chat
from support.patience import SECONDS

from mlc_rwkv_world.artifact.templates import WORLD
from mlc_rwkv_world.runtime import Engine

pytestmark = pytest.mark.slow

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FRANCE = "What is the capital of France?"


def text_of(response: Any) -> str:
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return str(choice.get("text") or choice["message"]["content"])


def test_a_state_of_a_prompt(server: Server) -> None:
    first, rest = "The capital of France is Paris. ", "The capital of Spain is"
    made = server.post("/v1/states", {"prompt": first}).json()
    assert made["object"] == "state" and made["tokens"] > 5 and made["bytes"] > 1000
    name = made["id"]
    assert made in server.get("/v1/states").json()["data"]
    assert server.get(f"/v1/states/{name}").json() == made
    options = {"temperature": 0, "max_tokens": 8}
    # A text that is cut there, read as two.
    ids = [server.post("/tokenize", {"prompt": one}).json()["tokens"] for one in (first, rest)]
    whole = text_of(server.post(COMPLETIONS, {"prompt": ids[0] + ids[1], **options}))
    for _ in range(2):
        asked = {"prompt": rest, "state": name, **options}
        assert text_of(server.post(COMPLETIONS, asked)) == whole
    further = server.post("/v1/states", {"prompt": rest, "state": name}).json()
    assert further["tokens"] == sum(map(len, ids))
    for one in (further["id"], name):
        deleted = httpx_delete(server, one)
        assert deleted == (200, {"id": one, "object": "state.deleted", "deleted": True})
    assert httpx_delete(server, name)[0] == 404
    assert server.post(COMPLETIONS, {"prompt": rest, "state": name}).status_code == 404
    assert server.get("/v1/states").json()["data"] == []


def httpx_delete(server: Server, name: str) -> tuple[int, Any]:
    import httpx

    response = httpx.delete(f"{server.url}/v1/states/{name}", timeout=60)
    return response.status_code, response.json()


def test_a_state_of_messages(server: Server) -> None:
    said = [
        {"role": "system", "content": "Hello. I answer shortly."},
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": "Hello."},
    ]
    name = server.post("/v1/states", {"messages": said}).json()["id"]
    asked = chat(FRANCE)
    whole = {**asked, "messages": said + asked["messages"]}
    answer = server.post(CHAT, {**asked, "state": name})
    assert text_of(answer) == text_of(server.post(CHAT, whole))
    assert answer.json()["usage"]["prompt_tokens"] < 20
    httpx_delete(server, name)


@pytest.mark.parametrize("body", [{}, {"prompt": "x", "messages": []}, {"prompt": ""}])
def test_a_state_of_nothing_is_refused(server: Server, body: Any) -> None:
    assert server.post("/v1/states", body).status_code == 400
    assert server.get("/v1/states").json()["data"] == []


def test_a_tuned_state_is_taken_where_that_is_allowed(
    server: Server, thinking_server: Server, thinker: Engine, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    layers, _, width = thinker.state_shape
    assert thinker.tuned_rows is not None
    shape = thinker.tuned_rows.shape(layers, width)[1:]
    chance = np.random.default_rng(1)
    tensors = {
        f"blocks.{i}.att.time_state": torch.from_numpy(chance.normal(size=shape).astype(np.float32))
        for i in range(layers)
    }
    path = tmp_path / "tuned.pth"
    torch.save(tensors, path)
    binary = {"headers": {"content-type": "application/octet-stream"}}
    upload = "/v1/tuned_states"
    made = thinking_server.post(upload, content=path.read_bytes(), **binary)
    assert made.status_code == 200, made.text
    state = thinker.new_state()
    state.load(path)
    prompt = "User: Hi\n\nAssistant:"
    wanted = "".join(thinker.generate(prompt, state=state, temperature=0, max_tokens=8))
    asked = {"prompt": prompt, "state": made.json()["id"], "temperature": 0, "max_tokens": 8}
    assert text_of(thinking_server.post(COMPLETIONS, asked)) == wanted
    httpx_delete(thinking_server, made.json()["id"])
    for data in (b"", b"nothing", path.read_bytes()[:500]):
        assert thinking_server.post(upload, content=data, **binary).status_code == 400
    assert thinking_server.post(upload, {"a": 1}).status_code == 415
    refused = thinking_server.get(upload)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    # Who has not allowed it has no such endpoint.
    assert server.post(upload, content=b"x", **binary).status_code == 404
    assert server.post(upload, {"a": 1}).status_code == 404


def test_tokens(server: Server, engine: Engine) -> None:
    text = "User: 你好 🙂"
    found = server.post("/tokenize", {"prompt": text}).json()
    assert found["tokens"] == engine.tokenizer.encode(text)
    assert found["count"] == len(found["tokens"])
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": text}
    messages = chat(FRANCE)["messages"]
    found = server.post("/tokenize", {"messages": messages}).json()
    assert found["tokens"] == [
        *engine.tokenizer.encode(WORLD.primer),
        *engine.tokenizer.encode(WORLD.prompt(FRANCE)),
    ]
    assert server.post("/detokenize", {"tokens": [65535]}).status_code == 400
    assert server.post("/tokenize", {}).status_code == 400
    info = server.get("/tokenizer_info").json()
    # What lm-eval asks for, to put it before a text.
    asked = {"prompt": info["eos_token"], "add_special_tokens": False}
    assert server.post("/tokenize", asked).json()["tokens"] == [0]
    assert server.post("/detokenize", {"tokens": [0]}).json()["prompt"] == info["bos_token"]
    inside = server.post("/tokenize", {"prompt": f"a{info['eos_token']}"}).json()["tokens"]
    assert len(inside) > 2 and 0 not in inside
    assert info["eos_token_id"] == 0 and info["vocab_size"] == engine.tokenizer.token_count + 1


def test_figures(server: Server) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count")
    before = [server.figure(f"vllm:{name}") for name in names]
    usage = server.post(CHAT, chat(FRANCE)).json()["usage"]
    after = [server.figure(f"vllm:{name}") for name in names]
    grown = [b - a for a, b in zip(before, after, strict=True)]
    assert grown == [usage["prompt_tokens"], usage["completion_tokens"], 1]
    assert server.running() == 0


def test_health_asks_the_engine(server: Server) -> None:
    assert server.get("/health").json() == {"status": "ok"}


def test_its_description_names_every_endpoint(server: Server) -> None:
    description = server.get("/openapi.json").json()
    assert {CHAT, COMPLETIONS, "/v1/models", "/v1/states", "/health"} <= set(description["paths"])
    for path in ("/docs", "/redoc"):
        # They would load scripts from elsewhere.
        assert server.get(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "methods"),
    [
        ("PUT", "/v1/states", "GET, POST"),
        ("OPTIONS", "/v1/states/x", "DELETE, GET"),
        ("DELETE", CHAT, "POST"),
        ("PATCH", "/metrics", "GET"),
        # Whatever its body is.
        ("POST", "/metrics", "GET"),
        ("POST", "/v1/models/demo", "GET"),
    ],
)
def test_another_method_is_told_which_there_are(
    server: Server, method: str, path: str, methods: str
) -> None:
    answer = httpx.request(method, server.url + path, timeout=SECONDS)
    assert (answer.status_code, answer.headers["Allow"]) == (405, methods)
    assert answer.json()["error"]["message"] == "Method Not Allowed."
