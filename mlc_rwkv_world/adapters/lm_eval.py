"""Built models in EleutherAI's lm-evaluation-harness (`lm_eval`).

    import mlc_rwkv_world.adapters.lm_eval
    lm_eval.simple_evaluate("rwkv-world", model_args="model=NAME", tasks=["lambada_openai"])

or `python -m mlc_rwkv_world.adapters.lm_eval --model rwkv-world --model_args model=NAME ...`, which
is its own command with this model known to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from mlc_rwkv_world.numerics.perplexity import predict
from mlc_rwkv_world.runtime import Engine, load
from mlc_rwkv_world.runtime.sampler import score

# What harness and engine call alike.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_MAX_TOKENS = 256


@register_model("rwkv-world")
class RwkvWorldLM(LM):  # type: ignore[misc]
    """A built model."""

    def __init__(
        self,
        model: str | Engine,
        device: str | None = None,
        model_lib: str | None = None,
        batch_size: int | str | None = None,
        **_: Any,
    ) -> None:
        """`model` is a name or a path, or an engine that is open; `batch_size` has no meaning."""
        super().__init__()
        # The harness says cuda where nothing was asked.
        kind = device if device not in (None, "cuda", "cuda:0") else "auto"
        self.engine = (
            model if isinstance(model, Engine) else load(model, kind or "auto", model_lib=model_lib)
        )

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether greedy choices would give it."""
        return [self._continuation(*request.args) for request in requests]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each whole text."""
        most = 1 << 62
        return [-predict(self.engine, request.args[0], window=most).nats for request in requests]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to one of its stop texts."""
        return [self._text(*request.args) for request in requests]

    def _continuation(self, context: str, text: str) -> tuple[float, bool]:
        # Space between the two belongs to what follows: " Hello" is one token.
        begun = context.rstrip()
        context, text = begun, context[len(begun) :] + text
        head = [0, *self.engine.encode(context).tolist()] if context else [0]
        tail = self.engine.encode(text)
        state = self.engine.new_state()
        logits = self.engine.prefill(head, state)
        total, greedy = 0.0, True
        for token, rows in self._steps(tail, logits, state):
            (scores,) = score([token], rows[np.newaxis], [0], self.engine.vocab_size)
            total += scores.log_probability
            greedy &= int(rows.argmax()) == token
        return total, greedy

    def _steps(
        self, tokens: Iterable[int], logits: npt.NDArray[np.float32], state: Any
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Each token, with the logits from which it was to be predicted."""
        before: int | None = None
        for token in map(int, tokens):
            if before is not None:
                logits = self.engine.decode(before, state)
            yield token, logits
            before = token

    def _text(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        sampling = {name: options[name] for name in _SAMPLING if name in options}
        if not options.get("do_sample", sampling.get("temperature", 0) > 0):
            sampling = {"temperature": 0.0}
        return "".join(
            self.engine.generate(
                context or "\n",
                **sampling,
                presence_penalty=0,
                frequency_penalty=0,
                repetition_penalty=1,
                max_tokens=int(options.get("max_gen_toks", _MAX_TOKENS)),
                stop=[until] if isinstance(until, str) else [text for text in until if text],
            )
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
