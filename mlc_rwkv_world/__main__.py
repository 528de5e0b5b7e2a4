"""`python -m mlc_rwkv_world <command>`."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "bench": "measure a model's speed beside this machine's limits",
    "build": "build an artifact from a checkpoint",
    "chat": "talk with a built model",
    "verify": "check the files of a built model",
    "inspect": "show a model's values, and which blocks need float32",
    "perplexity": "measure how well a model predicts a text",
    "doctor": "show TVM, mlc_llm, and what is registered with it",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first argument names; its module is imported only then."""
    arguments = sys.argv[1:] if argv is None else argv
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        module = import_module(f"mlc_rwkv_world.cli.{name}")
        return int(module.main(arguments[1:], program=f"python -m mlc_rwkv_world {name}"))
    listing = "\n".join(f"  {command:10} {text}" for command, text in COMMANDS.items())
    help_text = f"usage: python -m mlc_rwkv_world COMMAND [options]\n\n{listing}"
    if name in ("-h", "--help"):
        print(help_text)
        return 0
    print(f"error: {name!r} is no command.\n\n{help_text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
