"""The templates there are: what they write, whom they are for, and their form for stock engines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlc_rwkv_world.artifact.conversation import conversation
from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.artifact.templates import G1, INSTRUCTION, QA, TEMPLATES, WORLD, template_of


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (WORLD, "User: Hello\n\nAssistant:"),
        (G1, "User: Hello\n\nAssistant: <think>\n</think"),
        (replace(G1, think="on"), "User: Hello\n\nAssistant: <think"),
        (replace(G1, think="short"), "User: Hello (think a bit)\n\nAssistant: <think"),
        (INSTRUCTION, "Instruction: Hello\n\nResponse:"),
        (QA, "Q: Hello\n\nA:"),
    ],
)
def test_prompts(template: Template, prompt: str) -> None:
    assert template.prompt(" Hello\n") == prompt
    assert (template.ending, template.stop, template.stop_ids) == (
        "\n\n",
        ("\n\n",),
        frozenset({0}),
    )


def test_world_begins_with_a_greeting_and_others_with_nothing() -> None:
    assert WORLD.primer.startswith("User: hi\n\nAssistant: Hi. I am your assistant")
    assert WORLD.primer.endswith("always answer it.\n\n")
    assert {name for name, template in TEMPLATES.items() if template.primer} == {"world"}
    assert replace(G1, system_message="Be brief.").primer == "System: Be brief.\n\n"


@pytest.mark.parametrize(
    ("version", "name", "template"),
    [
        (7, "rwkv7-g1a-0.4b-20250905-ctx4096", G1),
        (7, "rwkv7-g1-0.1b-20250307-ctx4096", G1),
        (7, "rwkv7-g1a4-2.9b", G1),
        (7, "RWKV7-G1-1.5B-HF", G1),
        (7, "rwkv7-2.9B-g1", G1),
        (7, "rwkv7-g0a-7.2b-20250829-ctx4096", G1),
        (7, "RWKV-x070-World-0.4B-v2.9-20250107-ctx4096", WORLD),
        (7, "rwkv7-0.4B-world", WORLD),
        (7, "rwkv7-bag1-0.4b", WORLD),
        (7, "rwkv7-g10-0.4b", WORLD),
        (4, "RWKV-4-World-0.4B", WORLD),
        (4, "my-g1-model", WORLD),
    ],
)
def test_a_checkpoints_name_tells_its_template(version: int, name: str, template: Template) -> None:
    assert template_of(version, name) is template


@pytest.mark.parametrize("name", TEMPLATES)
def test_stock_engines_write_the_same_conversation(name: str) -> None:
    """As mlc_llm's Conversation.as_prompt writes it; they ask for no thought, and get none."""
    template, form = TEMPLATES[name], conversation(TEMPLATES[name])
    separators = form["seps"] * 2
    written = form["system_template"].replace("{system_message}", form["system_message"])
    for message in ("One", "Two"):
        text = form["role_templates"]["user"].replace("{user_message}", message)
        written += form["roles"]["user"] + form["role_content_sep"] + text + separators[0]
        written += form["roles"]["assistant"] + form["role_empty_sep"]
        if message == "One":
            written += " Answer." + separators[1]
    plain = replace(template, modes={"off": WORLD.modes["off"]})
    ours = plain.primer + plain.prompt("One") + " Answer." + plain.ending + plain.prompt("Two")
    assert written == ours
    assert form["stop_str"] == ["\n\n"] and form["stop_token_ids"] == [0]


def test_worlds_stock_form_has_stocks_name() -> None:
    assert conversation(WORLD)["name"] == "rwkv_world"


def test_templates_say_what_they_are() -> None:
    assert list(map(str, TEMPLATES.values())) == [
        "world",
        "g1, thinking off",
        "instruction",
        "qa",
    ]
