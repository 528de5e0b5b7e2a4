"""The conversation templates there are, and which of them a checkpoint was trained for.

Sources: for `world` the demos of ChatRWKV, for `g1` RWKV-LM/RWKV-v7/RWKV7-G1x-templates.txt and
ChatRWKV/API_DEMO_CHAT.py, for the others the cards of the World models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from mlc_rwkv_world.artifact.stopping import Thought
from mlc_rwkv_world.artifact.template import (
    OFF,
    Mode,
    SamplingDefaults,
    Template,
    clean,
    clean_with_input,
)
from mlc_rwkv_world.errors import UsageError

_OPENING_ANSWER = (
    "Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it."
)
# A model that begins the user's next message inside its thought has lost its way.
_THOUGHT = Thought(opening=">", closing="</think>", stop=("\n\nUser:",))

WORLD = Template(
    name="world",
    system_template="User: hi\n\nAssistant: {system_message}\n\n",
    system_message=_OPENING_ANSWER,
)
G1 = Template(
    name="g1",
    system_template="System: {system_message}\n\n",
    takes_system=True,
    modes={
        # An empty thought: faster than one, and better than none.
        OFF: Mode(prompt=" <think>\n</think", thought=Thought(opening=">")),
        "short": Mode(request=" (think a bit)", prompt=" <think", thought=_THOUGHT),
        "on": Mode(prompt=" <think", thought=_THOUGHT),
    },
    sampling=SamplingDefaults(presence_penalty=0.5, frequency_penalty=0.5),
)
INSTRUCTION = Template(
    name="instruction", user="Instruction", assistant="Response", cleaned=clean_with_input
)
QA = Template(name="qa", user="Q", assistant="A", sampling=SamplingDefaults(top_p=0.2))

TEMPLATES = {template.name: template for template in (WORLD, G1, INSTRUCTION, QA)}
# rwkv7-g1a-0.4b-20250905-ctx4096, RWKV7-G1-2.9B; G0 was the first large model of that series.
_TRAINED_FOR = ((7, re.compile(r"(?<![a-z0-9])g[01](?:[a-z][0-9]*)?(?![a-z0-9])", re.I), G1),)


def template_of(version: int, checkpoint: str) -> Template:
    """The template that the checkpoint of this version of RWKV and this name was trained for."""
    for number, name, template in _TRAINED_FOR:
        if number == version and name.search(checkpoint):
            return template
    return WORLD


def template_named(name: str) -> Template:
    """The template `name`; UsageError where there is none."""
    if name not in TEMPLATES:
        raise UsageError(f"There is no template {name!r}; there are {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def with_thinking(template: Template, think: str) -> Template:
    """The template with another mode; UsageError where it has none of that name."""
    if think in template.modes:
        return replace(template, think=think)
    if not template.thinks:
        raise no_thinking(template)
    raise UsageError(f"Thinking is {think!r}; it can be {', '.join(template.modes)}.")


def no_thinking(template: Template) -> UsageError:
    """What to raise where a template that has no thinking is asked for it."""
    others = _names(other for other in TEMPLATES.values() if other.thinks)
    return UsageError(f"The template {template.name} has no thinking; {others} has.")


def with_system(template: Template, text: str) -> Template:
    """The template with a System text; UsageError where it takes none."""
    if not template.takes_system:
        others = _names(other for other in TEMPLATES.values() if other.takes_system)
        raise UsageError(f"The template {template.name} has no System text; {others} has.")
    return replace(template, system_message=clean(text))


def _names(templates: Iterable[Template]) -> str:
    return ", ".join(template.name for template in templates)
