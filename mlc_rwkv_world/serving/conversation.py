"""Messages as a prompt: the ids that `Chat` would have read in the same conversation.

Each turn is encoded for itself, as a conversation is read: what stands before the first message, a
message with the words that ask for its answer, an answer with what ends it. So the ids of a
conversation begin with those of its earlier turns, and a cache of states finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.stopping import StopRule
from mlc_rwkv_world.artifact.template import OFF, SYSTEM_MESSAGE, Mode, Template, clean
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime.engine import Engine

SYSTEM = ("system", "developer")
ASSISTANT = "assistant"
ROLES = (*SYSTEM, "user", ASSISTANT)


@dataclass(frozen=True)
class Turn:
    """A message: who says it, the text, and what an assistant thought before it."""

    role: str
    text: str
    thought: str = ""


@dataclass(frozen=True)
class Prompt:
    """The ids of a prompt, int32 [T], and the places in them where turns end."""

    ids: npt.NDArray[np.int32]
    marks: tuple[int, ...] = ()


def write(
    turns: Sequence[Turn],
    template: Template,
    *,
    begins: bool = True,
    asks: bool = True,
    guided: bool = False,
) -> Iterator[str]:
    """The texts of a conversation, each to be encoded for itself.

    Where it `begins`, the template's primer comes first, with the system texts that stand at the
    beginning; later ones stand where they are. Where it `asks`, an answer follows: the last turn,
    if it is an assistant's, is how that begins; a `guided` answer follows no thought. Raises
    UsageError for a role that there is none of.
    """
    for turn in turns:
        if turn.role not in ROLES:
            raise UsageError(f"The role {turn.role[:40]!r} is not offered; give one of {ROLES}.")
    rest = list(turns)
    if begins:
        system = []
        while rest and rest[0].role in SYSTEM:
            system.append(clean(rest.pop(0).text))
        yield _primer(template, "\n".join(filter(None, system)))
    pending = ""
    for turn in rest:
        if turn.role in SYSTEM:
            pending += _system(template, clean(turn.text))
        elif turn.role == ASSISTANT:
            answer = _answer(template, turn)
            yield pending + f"{template.assistant}{template.empty_sep}{_before(template, turn)}"
            pending = ""
            yield answer if asks and turn is rest[-1] else answer + template.ending
        else:
            pending += template.asked(turn.text)
    if asks and not is_begun(turns):
        pending += template.invitation + (_after_thought(template) if guided else "")
    yield pending


def is_begun(turns: Sequence[Turn]) -> bool:
    """Whether the last turn is the beginning of the answer that is asked for."""
    return bool(turns) and turns[-1].role == ASSISTANT


def rule(template: Template, turns: Sequence[Turn], *, guided: bool = False) -> StopRule:
    """When the answer is over; what a grammar guides ends by that alone."""
    own = template.rule
    if guided:
        return StopRule((), own.ids)
    return replace(own, thought=None) if is_begun(turns) else own


def encode(engine: Engine, texts: Iterator[str]) -> Prompt:
    """The prompt that consists of `texts`; raises UsageError where they hold nothing."""
    parts = [engine.encode(text) for text in texts if text]
    if not parts:
        raise UsageError("The prompt is empty. Give at least one message.")
    ends = np.cumsum([len(part) for part in parts])
    return Prompt(np.concatenate(parts), tuple(int(end) for end in ends[:-1]))


def _primer(template: Template, system: str) -> str:
    if not system:
        return template.primer
    if SYSTEM_MESSAGE not in template.system_template:
        return template.primer + _system(template, system)
    return replace(template, system_message=system).primer


def _system(template: Template, text: str) -> str:
    """A system text in the middle; templates without a form for it have it as a line before."""
    if not text:
        return ""
    return f"System: {text}{template.ending}" if template.takes_system else f"{text}\n"


def _before(template: Template, turn: Turn) -> str:
    """What stands between the words that ask for an answer and what a model writes."""
    if turn.thought and template.thinks:
        return _thinking(template).prompt
    return template.modes[OFF].prompt if template.think == OFF else ""


def _answer(template: Template, turn: Turn) -> str:
    """What a model has written, its thought with it."""
    text = clean(turn.text)
    if turn.thought and template.thinks:
        thought = _thinking(template).thought
        assert thought is not None
        said = f"{turn.thought.strip()}\n{thought.closing}\n{text}"
        return f"{thought.opening}\n{said}"
    if _before(template, turn):
        return f"{_after_thought(template)}{text}"
    return f" {text}" if text else ""


def _thinking(template: Template) -> Mode:
    """A mode in which models write a thought."""
    return next(m for m in template.modes.values() if m.thought is not None and m.thought.closing)


def _after_thought(template: Template) -> str:
    """What ends the empty thought of an answer, as models write it."""
    thought = template.modes[OFF].thought
    return "" if thought is None else f"{thought.opening}\n"
