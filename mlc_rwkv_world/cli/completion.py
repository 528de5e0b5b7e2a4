"""`rwkv-world completion`: what makes a shell complete our commands, their options and files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from mlc_rwkv_world import console
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.cli.commands import COMMANDS

_SHELLS = ("bash", "zsh", "fish")
_FILES = ("file", "dir", "file.svg", "source", "model")
_CHAT = "mlc_chat_cli"


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command; gives the exit status."""
    return status.run(parser(program), _run, argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program,
        description='Print a shell\'s completions: bash: eval "$(rwkv-world completion bash)"; '
        "zsh: the same with zsh; fish: rwkv-world completion fish | source.",
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.add_argument(
        "--program",
        default="rwkv-world",
        choices=("rwkv-world", _CHAT),
        help="whose completions (default: rwkv-world)",
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    import shtab

    root = _chat() if options.program == _CHAT else _every(options.program)
    _name_files(root, shtab.FILE)
    console.say(*shtab.complete(root, options.shell).splitlines())
    return 0


def _chat() -> argparse.ArgumentParser:
    from mlc_rwkv_world.cli import chat

    return chat.parser()


def _every(program: str) -> argparse.ArgumentParser:
    root = status.Parser(prog=program)
    places = root.add_subparsers(parser_class=argparse.ArgumentParser)
    for name, text in COMMANDS.items():
        parser = import_module(f"mlc_rwkv_world.cli.{name}").parser(f"{program} {name}")
        places.add_parser(name, help=text, parents=[parser], add_help=False)
    return root


def _name_files(parser: argparse.ArgumentParser, files: object) -> None:
    """Have what takes a file complete to one. What a parser holds, it has no public word for."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _name_files(inner, files)
        elif str(action.metavar or action.dest).lower() in _FILES:
            action.complete = files  # type: ignore[attr-defined]
