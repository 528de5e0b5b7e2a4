"""What stands before every endpoint: who may ask, for what name, with what body."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Callable, Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlc_rwkv_world.serving.http.answering import response_of
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.limits import Limits

# Asked by load balancers, and by a browser that has no key yet.
_OPEN = ("/health", "/")
_OPEN_BELOW = "/page/"
_TUNED = "application/octet-stream"


class Guard:
    """Lets requests through that name this server, have its key, and a body that it can read."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        takes_post: Callable[[str], bool],
        key: str | None = None,
        hosts: Collection[str] = (),
        uploads: str | None = None,
    ) -> None:
        """`hosts` are its names beside localhost; `uploads` is a path that takes files.

        A body is read where `takes_post` says that the path takes one; else the app refuses.
        """
        self._app = app
        self._limits = limits
        self._takes_post = takes_post
        self._key = None if key is None else key.encode()
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or say why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            self._check_host(headers.get(b"host"))
            self._check_key(scope, headers)
            if scope["method"] == "POST" and self._takes_post(scope["path"]):
                receive = await self._read(scope["path"], headers, receive)
        except Fault as fault:
            await response_of(fault)(scope, receive, send)
            return
        except _Gone:
            return
        await self._app(scope, receive, _with_headers(send))

    def _check_host(self, host: bytes | None) -> None:
        """Only under its own names: a page elsewhere that has its name point here is not served."""
        name = _name_of((host or b"").decode("latin-1"))
        if name in self._hosts or _is_address(name):
            return
        raise Fault(
            403,
            f"This server is not {name[:80]!r}. Start it with --allow-host to give it that name.",
            code="wrong_host",
        )

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        if self._key is None or path in _OPEN or path.startswith(_OPEN_BELOW):
            return
        if scope["method"] == "OPTIONS":
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self._key)
        if kind.lower() != b"bearer" or not right:
            raise Fault(
                401,
                "The key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
            )

    async def _read(self, path: str, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """The body, read whole and looked at, as what an endpoint receives."""
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower().decode("latin-1")
        wanted = _TUNED if path == self._uploads else "application/json"
        if kind != wanted:
            # What a page elsewhere can post without asking is none of this.
            raise Fault(415, f"The body is {kind[:80]!r}; send {wanted}.", code="media_type")
        try:
            body = await asyncio.wait_for(self._body(headers, receive), self._limits.body_seconds)
        except asyncio.TimeoutError:
            raise Fault(
                408, f"The body did not come within {self._limits.body_seconds:g} seconds."
            ) from None
        if wanted == "application/json":
            check_json(body)
        return _replaying(body, receive)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said) > most:
            raise _too_large(most)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            body += message.get("body", b"")
            if len(body) > most:
                raise _too_large(most)
            if not message.get("more_body"):
                return bytes(body)


def check_json(body: bytes) -> None:
    """Raise a Fault for what is not JSON in UTF-8, or has what no request has a use for."""
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=_no_number)
        # An escape may name half a character, which has no UTF-8 form.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _not_json(f"it is not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise _not_json("an escape names half a character") from None
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} (character {error.pos})") from None
    except ValueError as error:
        raise _not_json(str(error)[:100]) from None
    if not isinstance(value, dict):
        raise _not_json("it is no object")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _not_json(why: str) -> Fault:
    return Fault(400, f"The body is not a JSON object: {why}.", code="bad_json")


class _Gone(Exception):
    """The client went away before its body had come."""


def _too_large(most: int) -> Fault:
    return Fault(413, f"The body is larger than {most} bytes, which are the most.")


def _replaying(body: bytes, receive: Receive) -> Receive:
    """What gives `body` first, and then what `receive` gives: that the client has gone."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send) -> Send:
    """Every response says that its type is what it says."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
        await send(message)

    return sending


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
