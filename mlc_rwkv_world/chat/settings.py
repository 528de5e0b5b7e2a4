"""What of a conversation can be set while it goes on: how tokens are chosen, and how many."""

from __future__ import annotations

from difflib import get_close_matches

from mlc_rwkv_world.artifact.sampling_options import SAMPLING
from mlc_rwkv_world.errors import UsageError

MAX_TOKENS = "max_tokens"
NAMES = (*SAMPLING, MAX_TOKENS)


def read(text: str) -> tuple[str, float]:
    """A name and its value out of `name=value`, or `name value`.

    Raises UsageError where the name is none of `NAMES`, or the value no number.
    """
    name, _, value = text.replace("=", " ", 1).partition(" ")
    name, value = name.strip().lstrip("-").replace("-", "_"), value.strip()
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"{name!r} cannot be set.{hint} There are {', '.join(NAMES)}.")
    try:
        return name, SAMPLING.get(name, int)(value)
    except ValueError:
        raise UsageError(f"{name} is {value!r}; give a number, as in /set {name}=1.") from None
