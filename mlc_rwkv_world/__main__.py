"""`python -m mlc_rwkv_world <command>`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from mlc_rwkv_world.cli.start import start
from mlc_rwkv_world.stock.host import find_host

COMMANDS = {
    "bench": "measure a model's speed beside this machine's limits",
    "build": "build an artifact from a checkpoint",
    "chat": "talk with a built model",
    "serve": "serve a built model as OpenAI's interface",
    "verify": "check the files of a built model",
    "inspect": "show a model's values, and which blocks need float32",
    "perplexity": "measure how well a model predicts a text",
    "doctor": "show TVM, mlc_llm, and what is registered with it",
}
PROGRAM = "python -m mlc_rwkv_world"
# It looks at mlc_llm, where there is one, which needs PyTorch.
_LOOKS_AT_OTHERS = "doctor"


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first argument names; its module is imported only then."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        if name != _LOOKS_AT_OTHERS or find_host() is None:
            start()
        module = import_module(f"mlc_rwkv_world.cli.{name}")
        return int(module.main(arguments[1:], program=f"{PROGRAM} {name}"))

    from mlc_rwkv_world import console
    from mlc_rwkv_world.cli import status
    from mlc_rwkv_world.errors import UsageError

    listing = "\n".join(f"  {command:10} {text}" for command, text in COMMANDS.items())
    parser = status.Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description=f"COMMAND is one of these; each has a --help of its own.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)

    def run(options: argparse.Namespace) -> int:
        if not options.command:
            console.say(*parser.format_help().splitlines())
            return 0
        raise UsageError(
            f"{options.command[0]!r} is no command. There are:", lines=listing.split("\n")
        )

    return status.run(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
