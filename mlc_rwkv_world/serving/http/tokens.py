"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them and lm-eval asks for them."""

from __future__ import annotations

from typing import Any

from mlc_rwkv_world.serving import conversation
from mlc_rwkv_world.serving.http.bodies import DetokenizeBody, TokenizeBody
from mlc_rwkv_world.serving.http.chat import turns_of
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.http.service import Service
from mlc_rwkv_world.tokenizer import END_OF_TEXT

# The special token has no text. Clients know it by this name, whose id they ask for.
END_NAME = "<|endoftext|>"


async def tokenize(service: Service, body: TokenizeBody) -> dict[str, Any]:
    """The ids of a text or of a conversation. No token is added.

    `END_NAME` alone is the special token; inside a text it is text.
    """
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise Fault(400, "Give either a prompt or messages.", param="prompt")
    if body.prompt == END_NAME:
        ids = [END_OF_TEXT]
    elif body.prompt is not None:
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
    if body.tokens == [END_OF_TEXT]:
        return {"prompt": END_NAME}
    return {"prompt": service.engine.tokenizer.decode(body.tokens)}


def info(service: Service) -> dict[str, Any]:
    """The tokenizer's name and its one special token."""
    return {
        "tokenizer_class": "WorldTokenizer",
        "vocab_size": service.engine.tokenizer.token_count + 1,
        "model_max_length": service.limits.prompt_tokens,
        "eos_token": END_NAME,
        "eos_token_id": END_OF_TEXT,
        "bos_token": END_NAME,
        "bos_token_id": END_OF_TEXT,
        "chat_template": None,
    }
