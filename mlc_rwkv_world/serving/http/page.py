"""The page at `/`, with which people chat in a browser: files of this package, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# It runs its own scripts, talks to this server, and cannot be made to take text for HTML.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # Asked for again each time, since the next version has other files under the same names.
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """A route for each file, all read now: no request names a path on the disk."""
    first = FOLDER / "index.html"
    rest = [path for path in sorted(FOLDER.iterdir()) if path != first]
    return [_route("/", first), *(_route(f"/page/{path.name}", path) for path in rest)]


def _route(place: str, path: Path) -> Route:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}
    kind = _TYPES[path.suffix]

    async def get(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if tag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return Route(place, get, methods=["GET"], include_in_schema=False)
