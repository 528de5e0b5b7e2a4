"""`rwkv-world <command>`, and `python -m mlc_rwkv_world <command>`, which is the same."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from mlc_rwkv_world.cli.commands import COMMANDS
from mlc_rwkv_world.cli.start import start
from mlc_rwkv_world.stock.host import find_host

# It looks at mlc_llm, where there is one, which needs PyTorch.
_LOOKS_AT_OTHERS = "doctor"
_SCRIPT = "rwkv-world"


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first argument names; its module is imported only then."""
    arguments = sys.argv[1:] if argv is None else argv
    program = _SCRIPT if Path(sys.argv[0]).stem == _SCRIPT else "python -m mlc_rwkv_world"
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        if name != _LOOKS_AT_OTHERS or find_host() is None:
            start()
        module = import_module(f"mlc_rwkv_world.cli.{name}")
        return int(module.main(arguments[1:], program=f"{program} {name}"))

    from mlc_rwkv_world import console
    from mlc_rwkv_world.cli import status
    from mlc_rwkv_world.errors import UsageError

    listing = "\n".join(f"  {command:10} {text}" for command, text in COMMANDS.items())
    parser = status.Parser(
        prog=program,
        usage=f"{program} COMMAND [options]",
        description=f"COMMAND is one of these; each has a --help of its own.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)

    def run(options: argparse.Namespace) -> int:
        if not options.command:
            console.say(*parser.format_help().splitlines())
            return 0
        word = options.command[0]
        meant = status.nearest(word, COMMANDS)
        hint = "" if meant is None else f" Did you mean {program} {meant}?"
        raise UsageError(f"{word!r} is no command.{hint} There are:", lines=listing.split("\n"))

    return status.run(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
