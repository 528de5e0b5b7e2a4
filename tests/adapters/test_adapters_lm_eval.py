"""A built model in EleutherAI's harness, beside what the engine says itself."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_rwkv_world.numerics.perplexity import predict
from mlc_rwkv_world.runtime import Engine, load

pytestmark = pytest.mark.slow
PROMPT = "User: What is the capital of France?\n\nAssistant:"
ANSWER = " The capital of France is Paris."


@pytest.fixture(scope="module")
def engine(demo_artifact: Callable[[str], Path]) -> Engine:
    return load(demo_artifact("q0f32"), "cpu")


@pytest.fixture(scope="module")
def harness() -> Iterator[Any]:
    pytest.importorskip("lm_eval")
    # The tests' own programs do without PyTorch, and the harness does not.
    with pytest.MonkeyPatch.context() as patch:
        if sys.modules.get("torch", ...) is None:
            patch.delitem(sys.modules, "torch")
        import mlc_rwkv_world.adapters.lm_eval as adapter

        yield adapter


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def test_likelihoods_are_the_engines(harness: Any, engine: Engine) -> None:
    lm = harness.RwkvWorldLM(engine)
    (right, greedy), (wrong, other) = lm.loglikelihood(
        requests("loglikelihood", (PROMPT, ANSWER), (PROMPT, " The capital of France is Tokyo."))
    )
    assert greedy and not other
    assert wrong < right < 0
    state, total = engine.new_state(), 0.0
    logits = engine.prefill([0, *engine.encode(PROMPT)], state)
    for token in engine.encode(ANSWER):
        rows = np.asarray(logits, np.float64)
        total += float(rows[token] - rows.max() - math.log(np.exp(rows - rows.max()).sum()))
        logits = engine.decode(int(token), state)
    assert right == pytest.approx(total, abs=1e-3)


def test_space_belongs_to_what_follows(harness: Any, engine: Engine) -> None:
    lm = harness.RwkvWorldLM(engine)
    one, other = lm.loglikelihood(
        requests("loglikelihood", (PROMPT, ANSWER), (f"{PROMPT} ", ANSWER.lstrip()))
    )
    assert one == other


def test_whole_texts_and_answers(harness: Any, engine: Engine) -> None:
    lm = harness.RwkvWorldLM(engine)
    (found,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (PROMPT,)))
    assert found == -predict(engine, PROMPT).nats
    options = {"until": ["\n\n"], "max_gen_toks": 40}
    (text,) = lm.generate_until(requests("generate_until", (PROMPT, options)))
    assert text == ANSWER


def test_it_is_known_by_its_name(harness: Any) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("rwkv-world") is harness.RwkvWorldLM
