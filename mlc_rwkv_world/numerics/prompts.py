"""The prompts that a model is looked at with, and calibrated on, where the user gives none."""

from __future__ import annotations

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.numerics.stepwise import Prompts
from mlc_rwkv_world.tokenizer import WorldTokenizer

# In the World format. Lists full of commas come first: they are what broke the 1.5B model.
BUILT_IN: tuple[str, ...] = (
    "User: Which one is not like the others: apple, pear, banana, hammer?\n\nAssistant:",
    "User: red, green, blue, yellow, one, two, three, four, and so on, and so on,\n\nAssistant:",
    "User: 一，二，三，四，五，六，七，后面是什么？\n\nAssistant:",
    "User: hi\n\nAssistant: Hi. I am your assistant and I will provide expert full response in "
    "full details. Please feel free to ask any question and I will always answer it.\n\n"
    "User: What is the capital of France?\n\nAssistant:",
    "User: 中国的首都是哪里？\n\nAssistant: 中国的首都是北京。\n\n",
    'def mean(values):\n    """The mean."""\n    return sum(values) / len(values)\n',
    "3.14159, 2.71828, 1.41421, 1.61803, -1, 0, 1e10, 65504\n",
    ",,,,,,,,,,,,,,,,\n\n\n\n................",
)


def encoded(texts: tuple[str, ...], tokenizer: WorldTokenizer) -> Prompts:
    """The tokens of some texts, each read on its own."""
    ids = tuple(tuple(map(int, tokenizer.encode(text))) for text in texts)
    if not ids or not all(ids):
        raise UsageError("there is nothing to read: a prompt is empty.")
    return Prompts(ids)
