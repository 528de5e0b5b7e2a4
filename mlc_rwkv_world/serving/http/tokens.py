"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them and lm-eval asks for them."""

from __future__ import annotations

from typing import Any

from mlc_rwkv_world.serving import conversation
from mlc_rwkv_world.serving.http.bodies import DetokenizeBody, TokenizeBody
from mlc_rwkv_world.serving.http.chat import turns_of
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.http.scores import spelled
from mlc_rwkv_world.serving.http.service import Service
from mlc_rwkv_world.tokenizer import END_OF_TEXT


async def tokenize(service: Service, body: TokenizeBody) -> dict[str, Any]:
    """The ids of a text or of a conversation. No token is added: this vocabulary has none."""
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise Fault(400, "Give either a prompt or messages.", param="prompt")
    if body.prompt is not None:
        ids = (await service.encode(body.prompt)).tolist()
    else:
        written = conversation.write(turns_of(body.messages or ()), service.template)
        ids = conversation.encode(service.engine, written).ids.tolist()
    return {
        "tokens": ids,
        "count": len(ids),
        "max_model_len": service.limits.prompt_tokens,
        "token_strs": None,
    }


def detokenize(service: Service, body: DetokenizeBody) -> dict[str, Any]:
    """The text of ids; bytes that are no UTF-8 become U+FFFD."""
    service.check_model(body.model)
    most = service.engine.tokenizer.token_count
    for token in body.tokens:
        if token > most:
            raise Fault(400, f"There is no token {token}.", param="tokens")
    return {"prompt": service.engine.tokenizer.decode(body.tokens)}


def info(service: Service) -> dict[str, Any]:
    """The tokenizer's name and its one special token."""
    end = spelled(service.engine.tokenizer, END_OF_TEXT)
    return {
        "tokenizer_class": "WorldTokenizer",
        "vocab_size": service.engine.tokenizer.token_count + 1,
        "model_max_length": service.limits.prompt_tokens,
        "eos_token": end,
        "eos_token_id": END_OF_TEXT,
        "bos_token": end,
        "bos_token_id": END_OF_TEXT,
        "chat_template": None,
    }
