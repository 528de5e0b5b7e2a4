"""The World conversation template, in the JSON form that `mlc-chat-config.json` carries.

It differs from the template of the same name in stock mlc_llm in two ways that BlinkDL's own
chats ask for: a blank line follows the opening answer, and a prompt ends with `Assistant:`, not
with a space (the space belongs to the answer's first token).
"""

from __future__ import annotations

from typing import Any

OPENING_ANSWER = (
    "Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it."
)


def world_conversation() -> dict[str, Any]:
    """The template as stock engines read it."""
    return {
        "name": "rwkv_world",
        "system_template": "User: hi\n\nAssistant: {system_message}\n\n",
        "system_message": OPENING_ANSWER,
        "system_prefix_token_ids": None,
        "add_role_after_system_message": True,
        "roles": {"user": "User", "assistant": "Assistant"},
        "role_templates": {
            "user": "{user_message}",
            "assistant": "{assistant_message}",
            "tool": "{tool_message}",
        },
        "messages": [],
        "seps": ["\n\n"],
        "role_content_sep": ": ",
        "role_empty_sep": ":",
        "stop_str": ["\n\n"],
        "stop_token_ids": [0],
        "function_string": "",
        "use_function_calling": False,
    }
