"""A hub of one function, in this process: huggingface_hub asks it as it would ask a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

Answer = Callable[[Any], tuple[int, Any, bytes]]


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """Let `answer` give status, headers and body to all that huggingface_hub asks meanwhile."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    # Which of its relatives the library uses is for its version to say.
    bases = (base.__module__.split(".")[0] for base in HfHubHTTPError.__mro__)
    httpx = import_module(next(name for name in bases if name.startswith("httpx")))

    def respond(request: Any) -> Any:
        status, headers, body = answer(request)
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))

    huggingface_hub.set_client_factory(
        lambda: httpx.Client(transport=httpx.MockTransport(respond), follow_redirects=True)
    )
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(lambda: httpx.Client(follow_redirects=True))
