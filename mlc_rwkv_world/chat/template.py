"""The template of a model, from its configuration.

Stock mlc_llm's own `rwkv_world` lacks the blank line after the primer and ends a prompt with a
space; both are put right.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.template import SYSTEM_MESSAGE, USER_MESSAGE, Template
from mlc_rwkv_world.artifact.templates import (
    TEMPLATES,
    WORLD,
    template_named,
    with_system,
    with_thinking,
)
from mlc_rwkv_world.errors import ArtifactError, UsageError
from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.sampler import Sampling


def configured(config: ChatConfig) -> Template:
    """The template that a configuration names, or else its `conv_template`; World's for others.

    `conv_template` says what is different, unless that is another template's. Raises ArtifactError
    where either cannot be.
    """
    given = config.conversation
    stock_name = given.get("name") if given is not None else None
    try:
        if config.template is not None:
            template = template_named(config.template)
        else:
            template = next((t for t in TEMPLATES.values() if t.stock_name == stock_name), WORLD)
        if config.think is not None:
            template = with_thinking(template, config.think)
    except UsageError as error:
        raise ArtifactError(f"{config.path}: {error}") from None
    if given is None or (config.template is not None and stock_name != template.stock_name):
        return template
    return _changed(template, Fields(given, f"{config.path}: conv_template"))


def choose(
    engine: Engine,
    template: Template | str | None = None,
    think: str | None = None,
    system: str | None = None,
) -> Template:
    """The template that was asked for, by name too, or the model's own.

    `think` is one of its modes, `system` a System text. Raises UsageError for a template that does
    not exist, and for a mode or a System text that it does not have.
    """
    own = configured(engine.config)
    if template is None or template == own.name:
        template = own
    elif isinstance(template, str):
        template = template_named(template)
    if think is not None:
        template = with_thinking(template, think)
    return template if system is None else with_system(template, system)


def usual_sampling(engine: Engine, template: Template) -> Sampling:
    """The model's own sampling, and for another template than its own that template's."""
    if template.name == configured(engine.config).name:
        return engine.sampling
    return Sampling(**asdict(template.sampling))


def _changed(template: Template, fields: Fields) -> Template:
    """The template with what a `conv_template` says."""
    separators = fields.texts("seps", []) or [template.between, template.ending]
    roles = fields.object("roles", {"user": template.user, "assistant": template.assistant})
    message = fields.object("role_templates", {}).text("user", template.message)
    if USER_MESSAGE not in message:
        raise fields.error("role_templates", f"texts of which the user's holds {USER_MESSAGE}")
    system = fields.text("system_template", SYSTEM_MESSAGE)
    if system == SYSTEM_MESSAGE and template.takes_system:
        system = template.system_template
    # An empty stop string would end every answer before it begins.
    stop = [text for text in fields.texts("stop_str", [*template.stop]) if text]
    return replace(
        template,
        user=roles.text("user"),
        assistant=roles.text("assistant"),
        content_sep=fields.text("role_content_sep", template.content_sep),
        empty_sep=fields.text("role_empty_sep", template.empty_sep).rstrip(" "),
        message=message,
        between=separators[0],
        ending=separators[-1],
        system_template=system,
        system_message=fields.text("system_message", ""),
        stop=tuple(stop),
        stop_ids=template.stop_ids | {*fields.items("stop_token_ids", int, [])},
    )
