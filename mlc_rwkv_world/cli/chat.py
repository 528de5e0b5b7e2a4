"""`mlc_chat_cli`: talk with a model in a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from mlc_rwkv_world import __version__
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.errors import RwkvWorldError, UsageError

if TYPE_CHECKING:
    from mlc_rwkv_world.chat import Chat
    from mlc_rwkv_world.chat.commands import Commands

PROGRAM = "mlc_chat_cli"

# What a model says must not steer the terminal: of the control characters only line feed
# and tab are shown.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command; gives the exit status."""
    return status.run(_parser(program), _run, argv)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, description="Talk with an RWKV World model.")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", help="name, folder, params folder or mlc-chat-config.json of an artifact"
    )
    model.add_argument(
        "--model-lib-path",
        "--model-lib",
        metavar="FILE",
        help="the compiled library to run, if not one that the artifact lists",
    )
    model.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, metal, vulkan, opencl; cuda:1"
    )
    model.add_argument(
        "--threads", type=int, metavar="N", help="of a CPU (default: one for each core)"
    )
    mode = parser.add_argument_group("instead of a conversation")
    mode.add_argument("--prompt", metavar="TEXT", help="answer this once and end")
    mode.add_argument("--evaluate", action="store_true", help="measure the speed and end")
    mode.add_argument("--eval-prompt-len", type=int, default=128, metavar="N")
    mode.add_argument("--eval-gen-len", type=int, default=128, metavar="N")
    sampling = parser.add_argument_group("sampling (the model's own values where not given)")
    for name in ("temperature", "top-p", "presence-penalty", "frequency-penalty"):
        sampling.add_argument(f"--{name}", type=float, metavar="X")
    sampling.add_argument("--repetition-penalty", type=float, metavar="X")
    sampling.add_argument("--seed", type=int, metavar="N", help="repeat the same choices")
    sampling.add_argument(
        "--max-tokens", "--max-gen-len", type=int, metavar="N", help="longest answer"
    )
    parser.add_argument("--version", action="store_true", help="show the version and end")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.version:
        print(f"mlc-rwkv-world {__version__}")
        return 0
    if options.model is None:
        raise UsageError("Which model? Give --model NAME, or the path of an artifact.")
    from mlc_rwkv_world.cli.start import start_light

    start_light()
    # A model may say what the terminal's encoding cannot.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if options.evaluate:
        return _evaluate(options)
    chat = _open_chat(options, options.model)
    if options.prompt is not None:
        _show(chat.ask(options.prompt))
        return 0
    return _converse(chat, options)


def _open_chat(options: argparse.Namespace, model: str) -> Chat:
    from mlc_rwkv_world.chat import Chat
    from mlc_rwkv_world.cli.opening import load

    # Of the same model the same library; another model has its own.
    library = options.model_lib_path if model == options.model else None
    engine = load(model, options.device, model_lib=library, threads=options.threads)
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    sampling = engine.sampling.changed({name: getattr(options, name) for name in names})
    return Chat(engine, sampling=sampling, seed=options.seed, max_tokens=options.max_tokens)


def _evaluate(options: argparse.Namespace) -> int:
    from mlc_rwkv_world.cli.opening import load
    from mlc_rwkv_world.runtime.evaluate import evaluate

    engine = load(
        options.model,
        options.device,
        model_lib=options.model_lib_path,
        threads=options.threads,
    )
    print(evaluate(engine, options.eval_prompt_len, options.eval_gen_len, options.seed or 0))
    return 0


def _converse(chat: Chat, options: argparse.Namespace) -> int:
    from mlc_rwkv_world.chat.commands import Commands

    commands = Commands(chat, lambda model: _open_chat(options, model or options.model))
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    read_line = _typed_lines() if terminal else _piped_line
    if terminal:
        print(f"{chat.engine.folder} on {chat.engine.device}. /help lists the commands.")
    result = 0
    while not commands.ended:
        try:
            line = read_line()
            if line is None:
                break
            _take(line, commands, terminal)
        except KeyboardInterrupt:
            # In a terminal it stops the answer, and the conversation goes on from there.
            if not terminal:
                raise
        except BrokenPipeError:
            raise
        except (RwkvWorldError, OSError) as error:
            status.report(PROGRAM, error)
            result = 0 if terminal else status.exit_status(error)
    return result


def _typed_lines() -> Callable[[], str | None]:
    """A function that lets the user edit a line; None at the end of input.

    A paste of several lines comes as one message.
    """
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()

    def read_line() -> str | None:
        try:
            return session.prompt("User: ")
        except EOFError:
            return None

    return read_line


def _piped_line() -> str | None:
    data = sys.stdin.buffer.readline()
    try:
        return data.decode() if data else None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"A line is not valid UTF-8 (byte {data[error.start]:#04x}). Give valid UTF-8."
        ) from None


def _take(line: str, commands: Commands, terminal: bool) -> None:
    """Answer a line, or carry out the command in it."""
    if not line.strip():
        return
    output = commands.run(line)
    if output is None:
        answer = commands.chat.ask(line)
        if terminal:
            print("Assistant: ", end="", flush=True)
        _show(answer)
    elif output:
        print(output, flush=True)


def _show(answer: Generator[str, None, None]) -> None:
    """Print an answer as it comes, and end the line however it ends."""
    try:
        with closing(answer) as pieces:
            for piece in pieces:
                print(piece.translate(_CONTROLS), end="", flush=True)
    finally:
        print(flush=True)
