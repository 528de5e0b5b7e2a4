"""Runs prompts through mlc_llm's engine, greedily, and prints the token ids that it chose.

A program of its own, since it needs mlc_llm: reads a JSON object on stdin, writes one on stdout.
Each of `rounds` is a list of prompts' indices that are sent at once to AsyncMLCEngine; those in
`one_by_one` are sent to MLCEngine afterwards, one after another.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import sys
from typing import Any

import mlc_llm.serve.engine as host
from mlc_llm.protocol.generation_config import GenerationConfig
from mlc_llm.serve.config import EngineConfig

request = contextvars.ContextVar[list[int]]("request")
streamer = host.TextStreamer


def recording(tokenizer: Any) -> Any:
    """The streamer that the engine would use, whose tokens are kept."""
    stream, ids = streamer(tokenizer), request.get()
    put = stream.put

    def keep(delta: Any) -> str:
        ids.extend(map(int, delta))
        return str(put(delta))

    stream.put = keep
    return stream


def greedy(max_tokens: int) -> GenerationConfig:
    config = GenerationConfig(temperature=0, max_tokens=max_tokens, stop_strs=[], stop_token_ids=[])
    config.frequency_penalty = config.presence_penalty = 0
    config.repetition_penalty, config.top_p, config.seed = 1, 1, 0
    return config


async def ask(engine: Any, number: int, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    ids: list[int] = []
    request.set(ids)
    text = ""
    async for outputs in engine._generate(prompt, greedy(max_tokens), f"request-{number}"):
        text += "".join(output.delta_text for output in outputs)
    return {"ids": ids, "text": text}


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    settings = EngineConfig(max_num_sequence=8, **job["settings"])
    return {
        "model": job["model"],
        "model_lib": job["library"],
        "device": "cpu",
        "mode": "server",
        "engine_config": settings,
    }


def one_by_one(job: dict[str, Any]) -> list[dict[str, Any]]:
    engine = host.MLCEngine(**arguments(job))
    results = []
    for number, index in enumerate(job["one_by_one"]):
        ids: list[int] = []
        request.set(ids)
        text = ""
        prompt, config = job["prompts"][index], greedy(job["max_tokens"])
        for outputs in engine._generate(prompt, config, f"request-{number}"):
            text += "".join(output.delta_text for output in outputs)
        results.append({"ids": ids, "text": text})
    engine.terminate()
    return results


async def at_once(job: dict[str, Any]) -> list[list[dict[str, Any]]]:
    engine = host.AsyncMLCEngine(**arguments(job))
    results, number = [], 0
    for indices in job["rounds"]:
        tasks = []
        for index in indices:
            number += 1
            tasks.append(
                asyncio.create_task(ask(engine, number, job["prompts"][index], job["max_tokens"]))
            )
        results.append(await asyncio.gather(*tasks))
    engine.terminate()
    return results


if __name__ == "__main__":
    host.TextStreamer = recording
    work = json.load(sys.stdin)
    answers = asyncio.run(at_once(work))
    if work["one_by_one"]:
        answers.append(one_by_one(work))
    answer = json.dumps(answers)
    with os.fdopen(1, "w") as out:
        out.write(answer + "\n")
