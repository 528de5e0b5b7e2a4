"""Errors as OpenAI's clients know them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from mlc_rwkv_world.errors import RwkvWorldError, UsageError
from mlc_rwkv_world.serving.requests import Busy
from mlc_rwkv_world.serving.worker import Stopped

INVALID = "invalid_request_error"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Seconds after which a client may try again.
_AGAIN = {429: "1", 503: "5"}


class Fault(Exception):
    """Ends a request with an HTTP status and a body in OpenAI's form."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = _TYPES.get(self.status, INVALID if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        headers = {"Retry-After": _AGAIN[self.status]} if self.status in _AGAIN else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 408:
            # What may still come of the body is nothing to wait for.
            headers["Connection"] = "close"
        return headers


def fault_of(error: Exception) -> Fault:
    """The fault for an error of this package, or one that nobody has foreseen."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, Busy):
        return Fault(429, str(error), code="busy")
    if isinstance(error, Stopped):
        return Fault(503, str(error), code="stopped")
    if isinstance(error, UsageError):
        return Fault(400, str(error))
    if isinstance(error, RwkvWorldError):
        return Fault(500, str(error))
    return Fault(500, f"Internal error: {type(error).__name__}.")
