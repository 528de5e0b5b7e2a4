"""`mlc_chat_cli`: talk with a model in a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from mlc_rwkv_world import console
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.cli.sampling import add_sampling, given
from mlc_rwkv_world.errors import RwkvWorldError, UsageError

if TYPE_CHECKING:
    from mlc_rwkv_world.chat import Chat
    from mlc_rwkv_world.chat.commands import Commands
    from mlc_rwkv_world.cli.terminal import Person

PROGRAM = "mlc_chat_cli"


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command; gives the exit status."""
    return status.run(parser(program), lambda options: _run(options, program), argv)


def parser(program: str | None = PROGRAM) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(program, description="Talk with an RWKV World model.")
    model = parser.add_argument_group("model")
    model.add_argument(
        "name", nargs="?", metavar="MODEL", help="name, folder, params folder or configuration"
    )
    model.add_argument("--model", help="the same, as older programs say it")
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
    talk = parser.add_argument_group("conversation (the model's own where not given)")
    talk.add_argument("--template", metavar="NAME", help="world, g1, instruction or qa")
    talk.add_argument("--think", metavar="HOW", help="off, short or on, for models that think")
    talk.add_argument("--system", metavar="TEXT", help="a System text, for templates with one")
    talk.add_argument(
        "--state", metavar="FILE", help="begin from a saved conversation, or a tuned state (.pth)"
    )
    mode = parser.add_argument_group("instead of a conversation")
    mode.add_argument("--prompt", metavar="TEXT", help="answer this once and end")
    mode.add_argument("--evaluate", action="store_true", help="measure the speed and end")
    mode.add_argument("--eval-prompt-len", type=int, default=128, metavar="N")
    mode.add_argument("--eval-gen-len", type=int, default=128, metavar="N")
    add_sampling(parser)
    return parser


def _run(options: argparse.Namespace, program: str) -> int:
    if options.name is not None and options.model is not None:
        raise UsageError("The model is given twice. Give it once.")
    options.model = options.name if options.model is None else options.model
    if options.model is None:
        raise UsageError("Which model? Give --model NAME, or the path of an artifact.")
    from mlc_rwkv_world.cli.start import start_light

    start_light()
    if options.evaluate:
        return _evaluate(options)
    chat = _open_chat(options, options.model)
    if options.prompt is not None:
        _answer(chat, options.prompt)
        return 0
    return _converse(chat, options, program)


def _open_chat(options: argparse.Namespace, model: str) -> Chat:
    from mlc_rwkv_world.chat import Chat
    from mlc_rwkv_world.chat.template import choose, usual_sampling
    from mlc_rwkv_world.cli.opening import load

    # Of the same model the same library and template; another model has its own.
    same = model == options.model
    library = options.model_lib_path if same else None
    engine = load(model, options.device, model_lib=library, threads=options.threads)
    asked = (options.template, options.think, options.system) if same else ()
    template = choose(engine, *asked)
    if same and options.stop:
        template = replace(template, stop=(*template.stop, *options.stop))
    sampling = usual_sampling(engine, template).changed(given(options))
    chat = Chat(
        engine,
        sampling=sampling,
        seed=options.seed,
        max_tokens=options.max_tokens,
        template=template,
    )
    if options.state is not None and same:
        chat.load(options.state)
        if options.system is not None and chat.begun:
            raise UsageError(f"--system: the conversation in {options.state} has begun already.")
    return chat


def _evaluate(options: argparse.Namespace) -> int:
    from mlc_rwkv_world.cli.opening import load
    from mlc_rwkv_world.runtime.evaluate import evaluate

    engine = load(
        options.model,
        options.device,
        model_lib=options.model_lib_path,
        threads=options.threads,
    )
    console.say(evaluate(engine, options.eval_prompt_len, options.eval_gen_len, options.seed or 0))
    return 0


def _converse(chat: Chat, options: argparse.Namespace, program: str) -> int:
    from mlc_rwkv_world.chat.commands import Commands
    from mlc_rwkv_world.cli.terminal import find_person

    commands = Commands(chat, lambda model: _open_chat(options, model or options.model))
    person = find_person(commands)
    if person is not None:
        person.tell(
            f"{chat.engine.folder} on {chat.engine.device}, template {chat.template}. "
            "/help lists the commands."
        )
    result = 0
    while not commands.ended:
        try:
            line = _piped_line() if person is None else person.ask("User: ")
            if line is None:
                break
            _take(line, commands, person)
        except KeyboardInterrupt:
            # In a terminal it stops the answer, and the conversation goes on from there.
            if person is None:
                raise
        except (BrokenPipeError, console.OutputError, _InputError):
            raise
        except (RwkvWorldError, OSError) as error:
            status.report(program, error)
            result = 0 if person is not None else status.exit_status(error)
    return result


class _InputError(UsageError):
    """Standard input cannot be read, now or later."""


def _piped_line() -> str | None:
    try:
        data = sys.stdin.buffer.readline()
    except OSError as error:
        raise _InputError(f"Standard input cannot be read: {error.strerror}.") from None
    # A command may name a file, and names of files are bytes.
    return data.decode("utf-8", "surrogateescape") if data else None


def _take(line: str, commands: Commands, person: Person | None) -> None:
    """Answer a line, or carry out the command in it."""
    from mlc_rwkv_world.chat.commands import read

    text, command, argument = read(line)
    if text is None:
        output = commands.run(command, argument).splitlines()
        if person is None:
            console.say(*output)
        else:
            person.tell(*output)
        message, commands.asked = commands.asked, None
        if message is not None:
            _answer(commands.chat, message, _label(person))
    elif text.strip():
        _require_utf8(text)
        _answer(commands.chat, text, _label(person))


def _label(person: Person | None) -> str:
    return "Assistant: " if person is not None and person.sees_results else ""


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise UsageError(
            f"A line is not valid UTF-8 (byte {byte:#04x}). Give valid UTF-8."
        ) from None


def _answer(chat: Chat, message: str, label: str = "") -> None:
    """Print an answer as it comes, after `label`, and end the line however it ends.

    Its thought stands before it, see `console.Aside`.
    """
    bar = console.Bar(unit="tok", what="reading")
    aside = console.Aside()
    answer = chat.events(message, progress=bar.show)
    try:
        with closing(answer) as pieces:
            for piece in pieces:
                bar.close()
                if label and (aside.shown or not piece.is_thought):
                    console.label(label)
                    label = ""
                if piece.is_thought:
                    aside.utter(piece.text)
                else:
                    aside.close()
                    console.utter(piece.text)
    finally:
        bar.close()
        if aside.begun:
            aside.close()
        else:
            console.utter(f"{label}\n")
