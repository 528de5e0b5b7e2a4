"""`rwkv-world serve MODEL`: an OpenAI server for one model."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec

from mlc_rwkv_world import console
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.errors import InstallationError, UsageError

KEY_VARIABLE = "MLC_RWKV_WORLD_API_KEY"
_NEEDED = ("fastapi", "uvicorn", "pydantic", "prometheus_client")
_SIZE = re.compile(r"([0-9]{1,12})([kmgt]?)b?", re.I)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_LONGEST_KEY = 4096


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command; gives the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(program, description="Serve a built model as OpenAI's interface.")
    parser.add_argument("model", help="name, folder, params folder or configuration of an artifact")
    model = parser.add_argument_group("model")
    model.add_argument("--model-lib", metavar="FILE", help="the compiled library to use")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    model.add_argument("--threads", type=int, metavar="N", help="of a CPU")
    model.add_argument("--template", metavar="NAME", help="world, g1, instruction or qa")
    model.add_argument("--think", metavar="HOW", help="off, short or on, where none is asked for")
    model.add_argument("--name", metavar="NAME", help="what clients call it (default: its own)")
    place = parser.add_argument_group("who may ask")
    place.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    place.add_argument("--port", type=int, default=8000, help="0 for a free one (default: 8000)")
    place.add_argument(
        "--api-key-file",
        metavar="FILE",
        help=f"holds the key that clients send (or {KEY_VARIABLE})",
    )
    place.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name of this server"
    )
    place.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="a site whose pages may use it from browsers",
    )
    place.add_argument("--no-page", action="store_true", help="leave out the page at /")
    place.add_argument(
        "--allow-tuned-states", action="store_true", help="let clients upload tuned states"
    )
    work = parser.add_argument_group("how much")
    work.add_argument("--slots", type=int, metavar="N", help="answers at once (default: 32)")
    work.add_argument("--queue", type=int, metavar="N", help="requests that wait (default: 256)")
    work.add_argument(
        "--cache", default="512M", metavar="SIZE", help="of the cache of states; 0 for none"
    )
    work.add_argument("--cache-folder", metavar="DIR", help="keeps the cache between runs")
    work.add_argument("--max-prompt-tokens", type=int, metavar="N", help="(default: 131072)")
    work.add_argument("--max-answer-tokens", type=int, metavar="N", help="(default: 32768)")
    work.add_argument("--timeout", type=float, metavar="S", help="seconds for a request (3600)")
    work.add_argument(
        "--drain", type=float, metavar="S", help="seconds to end in once told to (30)"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InstallationError(
            f"serving needs {', '.join(missing)}: pip install 'mlc-rwkv-world[serve]'"
        )
    from mlc_rwkv_world.cli.start import start_light

    start_light()
    from mlc_rwkv_world.chat.template import choose, usual_sampling
    from mlc_rwkv_world.cli.opening import load
    from mlc_rwkv_world.serving.batch import DEFAULT_QUEUE, DEFAULT_SLOTS, BatchEngine
    from mlc_rwkv_world.serving.cache import StateCache
    from mlc_rwkv_world.serving.http import server
    from mlc_rwkv_world.serving.http.app import make_app
    from mlc_rwkv_world.serving.http.service import Service
    from mlc_rwkv_world.serving.limits import Limits

    key = _key(options.api_key_file)
    if key is None and not server.is_loopback(options.host):
        raise UsageError(
            f"--host {options.host}: other machines would reach this server, and it has no key. "
            f"Give --api-key-file, or {KEY_VARIABLE}."
        )
    limits = Limits(
        **{
            name: value
            for name, value in {
                "prompt_tokens": options.max_prompt_tokens,
                "answer_tokens": options.max_answer_tokens,
                "request_seconds": options.timeout,
                "drain_seconds": options.drain,
            }.items()
            if value is not None
        }
    )
    size = _bytes(options.cache)
    listening = server.bind(options.host, options.port)
    engine = load(
        options.model, options.device, model_lib=options.model_lib, threads=options.threads
    )
    template = choose(engine, options.template, options.think)
    shelf = None
    if options.cache_folder is not None:
        from mlc_rwkv_world.serving.shelf import Folder

        shelf = Folder(expanded(options.cache_folder), engine, console.complain)
    batch = BatchEngine(
        engine,
        slots=options.slots if options.slots is not None else DEFAULT_SLOTS,
        queue=options.queue if options.queue is not None else DEFAULT_QUEUE,
        cache=StateCache(size, shelf) if size else None,
    )
    service = Service(
        engine,
        batch,
        options.name or engine.name,
        template,
        usual_sampling(engine, template),
        limits,
        takes_tuned_states=options.allow_tuned_states,
    )
    names = {options.host, *options.allow_host}
    app = make_app(
        service,
        key=key,
        hosts=sorted(names),
        origins=options.allow_origin,
        with_page=not options.no_page,
    )
    host, port = listening.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    page = "" if options.no_page else f", with a page to chat at http://{place}/"

    def ready() -> None:
        console.say(
            f"{engine.folder} on {engine.device}, template {template}, is served as "
            f"{service.name} at http://{place}/v1{page}"
        )

    try:
        server.run(service, app, listening, ready)
    finally:
        if shelf is not None:
            shelf.close()
    return 0


def _key(path: str | None) -> str | None:
    """The key that clients send: of a file, or of the environment."""
    if path is None:
        key = os.environ.get(KEY_VARIABLE)
        if key is None:
            return None
        source = KEY_VARIABLE
    else:
        source = path
        with expanded(path).open("rb") as file:
            key = file.read(_LONGEST_KEY + 1).decode("latin-1").strip()
    if not key or len(key) > _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise UsageError(f"{source}: give a key of 1 to {_LONGEST_KEY} printable ASCII characters.")
    return key


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--cache {text[:40]!r}: give a size, 512M or 2G, or 0.")
    return int(match[1]) << _UNITS[match[2].lower()]
