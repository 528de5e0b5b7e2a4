"""OpenAI's own Python client, against a server process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from process import ENDLESS, Server, chat
from support.patience import SECONDS

from mlc_rwkv_world.chat import Chat
from mlc_rwkv_world.numerics.perplexity import predict
from mlc_rwkv_world.runtime import Engine
from mlc_rwkv_world.runtime.sampler import Sampling

pytestmark = pytest.mark.slow

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
MESSAGES = [{"role": "user", "content": FRANCE}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="none", timeout=SECONDS, max_retries=0
    ) as one:
        yield one


@pytest.fixture(scope="module")
def thinking(thinking_server: Server) -> Iterator[Any]:
    with openai.OpenAI(
        base_url=thinking_server.url + "/v1", api_key="none", timeout=SECONDS, max_retries=0
    ) as one:
        yield one


def ask(client: Any, **more: Any) -> Any:
    options = {"model": "demo", "messages": MESSAGES, "temperature": 0, **more}
    return client.chat.completions.create(**options)


def test_models(client: Any) -> None:
    (model,) = client.models.list().data
    assert model.id == "demo" == client.models.retrieve("demo").id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_chat_answers_as_a_terminal_does(client: Any, engine: Engine) -> None:
    said = "".join(Chat(engine, sampling=Sampling(temperature=0)).ask(FRANCE))
    answer = ask(client)
    (choice,) = answer.choices
    assert choice.message.content == said == PARIS
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.model == "demo"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.timings["predicted_n"] == usage.completion_tokens


def test_a_stream_gives_the_same_with_its_usage(client: Any) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    *said, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == PARIS
    assert said[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in said[-2:]] == [None, "stop"]
    assert last.choices == [] and last.usage.completion_tokens >= 7
    assert last.usage.prompt_tokens_details.cached_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in said)
    # Nobody asked for usage here.
    assert not any("usage" in chunk.model_fields_set for chunk in ask(client, stream=True))


def test_a_conversation_reads_only_what_is_new(client: Any) -> None:
    messages = [{"role": "user", "content": "Say hello to the cache."}]
    first = ask(client, messages=messages)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "What colour is the sky?"},
    ]
    second = ask(client, messages=messages)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached >= first.usage.prompt_tokens + first.usage.completion_tokens - 2
    alone = ask(client, messages=messages, extra_body={"cache": False})
    assert alone.usage.prompt_tokens_details.cached_tokens == 0
    assert alone.choices[0].message.content == second.choices[0].message.content


def test_seeds_and_several_choices(client: Any) -> None:
    def texts(seed: int, n: int = 1) -> list[str]:
        answer = ask(client, temperature=2, top_p=1, seed=seed, n=n, max_tokens=12)
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    three = texts(5, 3)
    assert three == texts(5, 3) and len(set(three)) == 3
    # The next choice has the next seed.
    assert texts(6) == three[1:2]
    assert texts(-1) == texts(-1)
    chunks = ask(client, temperature=2, top_p=1, seed=5, n=3, max_tokens=12, stream=True)
    streamed = ["", "", ""]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == three


def test_lengths_and_stops(client: Any) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        short = ask(client, **{name: 2})
        assert short.choices[0].finish_reason == "length"
        assert short.usage.completion_tokens == 2
        assert short.choices[0].message.content == "The capital"
    stopped = ask(client, stop=[" France", "nothing"])
    assert stopped.choices[0].message.content == "The capital of"
    assert stopped.choices[0].finish_reason == "stop"
    assert ask(client, stop=" is").choices[0].message.content == "The capital of France"


def test_scores_of_a_chat(client: Any) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries).strip() == PARIS
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        # At temperature 0 the likeliest is taken.
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
    chunks = ask(client, logprobs=True, stream=True)
    streamed = [
        entry
        for chunk in chunks
        for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in entries]
    assert ask(client).choices[0].logprobs is None


def test_sampling_options_reach_the_sampler(client: Any, engine: Engine) -> None:
    prompt = "User: What is 1 plus 1?\n\nAssistant:"
    options: dict[str, Any] = {
        "temperature": 1.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "penalty_decay": 0.9,
    }
    own = {name: options.pop(name) for name in [*options] if name.startswith(("top_k", "min", "r"))}
    own["penalty_decay"] = options.pop("penalty_decay")
    answer = client.completions.create(
        model="demo",
        prompt=prompt,
        seed=11,
        max_tokens=20,
        logit_bias={"41693": -5},
        extra_body=own,
        **options,
    )
    wanted = engine.generate(
        prompt, seed=11, max_tokens=20, logit_bias={41693: -5.0}, **options, **own
    )
    assert answer.choices[0].text == "".join(wanted)


def test_completions_of_texts_and_ids(client: Any, engine: Engine) -> None:
    # A prompt is read as it is: blank lines stay, which messages lose.
    texts = ["The capital of France is", "def f():\n\n\n    return 1  "]
    ids = [engine.tokenizer.encode(text) for text in texts]
    wanted = ["".join(engine.generate(text, temperature=0, max_tokens=6)) for text in texts]
    for prompt in (texts, ids):
        answer = client.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=6)
        assert [choice.text for choice in answer.choices] == wanted
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    for one in (texts[0], ids[0]):
        answer = client.completions.create(model="demo", prompt=one, temperature=0, max_tokens=6)
        assert answer.choices[0].text == wanted[0]
    both = client.completions.create(
        model="demo", prompt=texts, temperature=0, max_tokens=6, n=2, echo=True
    )
    assert [choice.text for choice in both.choices] == [
        text + end for text, end in zip(texts, wanted, strict=True) for _ in range(2)
    ]
    assert both.usage.prompt_tokens == sum(map(len, ids))
    streamed = ["", ""]
    for chunk in client.completions.create(
        model="demo", prompt=texts, temperature=0, max_tokens=6, stream=True, echo=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [text + end for text, end in zip(texts, wanted, strict=True)]


def test_scores_of_a_prompt_are_those_of_perplexity(client: Any, engine: Engine) -> None:
    """As lm-eval asks for them."""
    ids = [0, *engine.tokenizer.encode(PARIS)]
    answer = client.completions.create(
        model="demo", prompt=[ids, ids], temperature=0, max_tokens=1, logprobs=1, echo=True
    )
    for choice in answer.choices:
        lists = choice.logprobs
        assert lists.token_logprobs[0] is None and lists.top_logprobs[0] is None
        scores = lists.token_logprobs[1 : len(ids)]
        assert -sum(scores) == pytest.approx(predict(engine, PARIS).nats, rel=1e-6)
        assert len(lists.tokens) == len(lists.text_offset) == len(ids) + 1
        assert "".join(lists.tokens[1:]).startswith(PARIS)
        for token, score, top in zip(
            lists.tokens[1:], scores, lists.top_logprobs[1:], strict=False
        ):
            assert top[token] == score
        place = lists.tokens.index(" Paris")
        assert choice.text[lists.text_offset[place] :].startswith(" Paris")
    only = client.completions.create(
        model="demo", prompt=ids, max_tokens=0, logprobs=0, echo=True
    ).choices[0]
    assert only.text == PARIS and only.finish_reason == "length"
    assert only.logprobs.token_logprobs[1:] == scores


def test_thinking(thinking: Any, thinker: Engine) -> None:
    chat = Chat(thinker, sampling=Sampling(temperature=0), think="on")
    said = "".join(chat.ask(FRANCE))
    for extra in (
        {"think": "on"},
        {"reasoning_effort": "high"},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ):
        message = ask(thinking, model="thinker", extra_body=extra).choices[0].message
        assert (message.content, message.reasoning_content) == (said, chat.thought)
    thought = content = ""
    for chunk in ask(thinking, model="thinker", extra_body={"think": "on"}, stream=True):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        thought += getattr(delta, "reasoning_content", None) or ""
    assert (content, thought) == (said, chat.thought)
    plain = ask(thinking, model="thinker").choices[0].message
    assert plain.content == said and not hasattr(plain, "reasoning_content")


def test_forms_of_answers(client: Any, thinking: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "n": {"type": "integer", "maximum": 9}},
        "required": ["city", "n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for one, name in ((client, "demo"), (thinking, "thinker")):
        answer = ask(one, model=name, response_format=wanted, max_tokens=60)
        found = json.loads(answer.choices[0].message.content)
        assert found["city"] in ("Paris", "Rome") and found["n"] <= 9
        assert answer.choices[0].finish_reason == "stop"
    answer = ask(client, extra_body={"response_format": {"type": "regex", "regex": "[ab]{4}c"}})
    assert answer.choices[0].message.content[4:] == "c"
    lark = {"type": "grammar", "grammar": 'start: "yes" | "no"'}
    assert ask(client, extra_body={"response_format": lark}).choices[0].message.content in (
        "yes",
        "no",
    )
    text = client.completions.create(
        model="demo",
        prompt="It is",
        extra_body={"response_format": {"type": "json_object"}},
        max_tokens=2,
    )
    assert text.choices[0].text.startswith("{")
    for form in (
        {"type": "regex", "regex": "("},
        {"type": "regex"},
        {"type": "grammar", "grammar": "start: x"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
    ):
        with pytest.raises(openai.BadRequestError):
            ask(client, extra_body={"response_format": form})


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": 200}, None),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, None),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["x"] * 99}, "stop"),
        ({"stop": ""}, None),
        ({"logit_bias": {"x": 1}}, None),
        ({"logit_bias": {"70000": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, None),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"extra_body": {"think": "on"}}, None),
        ({"extra_body": {"state": "state-x"}}, "state"),
        ({"extra_body": {"state": "../../etc/passwd"}}, "state"),
        ({"seed": 1 << 70}, "seed"),
    ],
)
def test_what_cannot_be_is_said(client: Any, wrong: dict[str, Any], param: str | None) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        ask(client, **wrong)
    error: Any = caught.value.body
    assert error["message"] and error["type"] == "invalid_request_error"
    assert error["param"] == param
    # And the stream is an error before it begins.
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
        ask(client, stream=True, **wrong)


def test_what_is_not_offered_says_so(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="Embeddings are not offered"):
        client.embeddings.create(model="demo", input="x")
    with pytest.raises(openai.BadRequestError, match="Images are not offered"):
        client.images.generate(prompt="x")
    with pytest.raises(openai.NotFoundError, match="not served"):
        ask(client, model="gpt-4")


def test_asynchronous_clients_are_answered_together(server: Server, engine: Engine) -> None:
    questions = [f"What is {i} plus 1?" for i in range(12)]

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=server.url + "/v1", api_key="none", timeout=SECONDS, max_retries=0
        ) as client:

            async def one(question: str) -> str:
                stream = await client.chat.completions.create(
                    model="demo",
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    stream=True,
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, questions))

    found = asyncio.run(all_of_them())
    for question, answer in zip(questions, found, strict=True):
        assert answer == "".join(Chat(engine, sampling=Sampling(temperature=0)).ask(question))


def test_a_stream_that_is_closed_frees_its_slot(client: Any, server: Server) -> None:
    stream = client.completions.create(model="demo", stream=True, **ENDLESS)
    for _, _ in zip(stream, range(3), strict=False):
        pass
    assert server.running() == 1
    stream.close()
    server.until_idle()
    assert server.post("/v1/chat/completions", chat(FRANCE)).status_code == 200
