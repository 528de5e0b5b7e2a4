"""Templates in the JSON form that stock engines read in `mlc-chat-config.json`.

World's differs from the template of the same name in stock mlc_llm in two ways that BlinkDL's own
chats ask for: a blank line follows the opening answer, and a prompt ends with `Assistant:`, not
with a space (the space belongs to the answer's first token).
"""

from __future__ import annotations

from typing import Any

from mlc_rwkv_world.artifact.template import SYSTEM_MESSAGE, Template
from mlc_rwkv_world.artifact.templates import WORLD


def conversation(template: Template) -> dict[str, Any]:
    """A template as stock engines read it. These know no thoughts: their prompts ask for none."""
    # They write this text whether there is a message to put in or not.
    written = template.system_template if template.primer else SYSTEM_MESSAGE
    return {
        "name": template.stock_name,
        "system_template": written,
        "system_message": template.system_message,
        "system_prefix_token_ids": None,
        "add_role_after_system_message": True,
        "roles": {"user": template.user, "assistant": template.assistant},
        "role_templates": {
            "user": template.message,
            "assistant": "{assistant_message}",
            "tool": "{tool_message}",
        },
        "messages": [],
        "seps": list(dict.fromkeys((template.between, template.ending))),
        "role_content_sep": template.content_sep,
        "role_empty_sep": template.empty_sep,
        "stop_str": list(template.stop),
        "stop_token_ids": sorted(template.stop_ids),
        "function_string": "",
        "use_function_calling": False,
    }


def world_conversation() -> dict[str, Any]:
    """The World template as stock engines read it."""
    return conversation(WORLD)
