"""The endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mlc_rwkv_world import __version__
from mlc_rwkv_world.errors import RwkvWorldError
from mlc_rwkv_world.serving.http import chat, completions, kept_states, page, tokens
from mlc_rwkv_world.serving.http.answering import response_of
from mlc_rwkv_world.serving.http.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ErrorBody,
    StateBody,
    TokenizeBody,
)
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.http.guard import Guard
from mlc_rwkv_world.serving.http.metrics import CONTENT_TYPE
from mlc_rwkv_world.serving.http.service import Service

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": "An error in OpenAI's form"}
    for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)
}
_NOT_OFFERED = {
    "embeddings": "Embeddings are",
    "images/generations": "Images are",
    "audio/speech": "Audio is",
    "audio/transcriptions": "Audio is",
    "moderations": "Moderation is",
    "responses": "The interface of responses is",
}


def make_app(
    service: Service,
    *,
    key: str | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    with_page: bool = True,
) -> ASGIApp:
    """The server's application: `key` is asked for, `hosts` are its names beside localhost.

    Pages of `origins` may use it from browsers; its own is left out without `with_page`.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.worker.stop()

    app = FastAPI(
        title="mlc-rwkv-world",
        version=__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
        redirect_slashes=False,
    )
    app.state.service = service
    _add_endpoints(app, service)
    if with_page:
        app.router.routes.extend(page.routes())
    _add_errors(app)
    guarded = Guard(
        app,
        limits=service.limits,
        key=key,
        hosts=hosts,
        takes_post=lambda path: "POST" in _methods(app, path),
        uploads=kept_states.UPLOAD if service.takes_tuned_states else None,
    )
    if not origins:
        return guarded
    return CORSMiddleware(
        guarded,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["authorization", "content-type"],
    )


def _add_endpoints(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody) -> Response:
        """Answer a conversation."""
        return await chat.answer(service, body)

    @app.post("/v1/completions")
    async def text_completions(body: CompletionBody) -> Response:
        """Go on with one or several prompts."""
        return await completions.answer(service, body)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model that is served, by its name."""
        service.check_model(name)
        return _model(service)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the engine answers; 503 where it does not, or the server is about to end."""
        await service.on_engine(lambda: None)
        if service.draining:
            raise Fault(503, "The server is about to end.", code="stopped")
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        """The ids of a text, or of a conversation that asks for an answer."""
        return await tokens.tokenize(service, body)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        """The text of ids."""
        return tokens.detokenize(service, body)

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        """What a client has to know of the tokenizer."""
        return tokens.info(service)

    @app.get("/v1/states")
    async def states() -> dict[str, Any]:
        """The states that prompts can begin from."""
        return {"object": "list", "data": service.states.all()}

    @app.post("/v1/states")
    async def new_state(body: StateBody) -> dict[str, Any]:
        """Make a state from a prompt or from messages."""
        return await kept_states.make(service, body)

    @app.get("/v1/states/{name}")
    async def state(name: str) -> dict[str, Any]:
        """A state by its name."""
        return service.states.describe(name)

    @app.delete("/v1/states/{name}")
    async def delete_state(name: str) -> dict[str, Any]:
        """Forget a state."""
        return await kept_states.delete(service, name)

    if service.takes_tuned_states:

        @app.post(
            kept_states.UPLOAD,
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/octet-stream": {
                            "schema": {"type": "string", "format": "binary"}
                        }
                    },
                }
            },
        )
        async def upload(request: Request) -> dict[str, Any]:
            """Keep a tuned state, a `.pth` as state tuning writes it."""
            return await kept_states.upload(service, await request.body())

    for path, what in _NOT_OFFERED.items():
        app.add_api_route(f"/v1/{path}", _refusing(what), methods=["POST"], include_in_schema=False)


def _model(service: Service) -> dict[str, Any]:
    engine = service.engine
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "mlc-rwkv-world",
        "max_model_len": service.limits.prompt_tokens,
        "vocab_size": engine.tokenizer.token_count + 1,
        "template": service.template.name,
        "think": list(service.template.modes),
        "states": engine.tuned_rows is not None,
    }


def _refusing(what: str) -> Any:
    async def refuse() -> None:
        raise Fault(400, f"{what} not offered.", code="unsupported")

    return refuse


def _methods(app: FastAPI, path: str) -> list[str]:
    """What a path may be asked with: routes know of one method each."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    found = [route.methods or () for route in routes if route.path_regex.match(path)]
    return sorted({method for methods in found for method in methods})


def _add_errors(app: FastAPI) -> None:
    async def ours(_: Request, error: Exception) -> Response:
        return response_of(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        return response_of(Fault(400, message, param=place or None, code="invalid_value"))

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = response_of(Fault(error.status_code, f"{error.detail}."))
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(_methods(request.app, request.url.path))
        return response

    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return response_of(error)

    app.add_exception_handler(Fault, ours)
    app.add_exception_handler(RwkvWorldError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unforeseen)
