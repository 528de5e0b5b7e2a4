"""The prompts that a model is looked at with, and calibrated on, where the user gives none."""

from __future__ import annotations

import dataclasses
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.errors import UsageError
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


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Token ids of B prompts, at least one each, that are read together, each on its own."""

    ids: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """T, how many there are in all."""
        return sum(map(len, self.ids))

    def joined(self) -> NDArray[np.int32]:
        """All token ids [T], one prompt's after another's."""
        return np.fromiter(chain.from_iterable(self.ids), np.int32)

    def offsets(self) -> NDArray[np.int32]:
        """Where each prompt begins, and the last one ends, [B + 1]."""
        return np.array([0, *accumulate(map(len, self.ids))], np.int32)

    def place(self, row: int) -> tuple[int, int]:
        """The prompt, and the position in it, of one of all the tokens."""
        prompt = int(np.searchsorted(self.offsets(), row, side="right")) - 1
        return prompt, row - int(self.offsets()[prompt])


def encoded(texts: tuple[str, ...], tokenizer: WorldTokenizer) -> Prompts:
    """The tokens of some texts, each read on its own. Raises UsageError where one is no text."""
    try:
        ids = tuple(tuple(map(int, tokenizer.encode(text))) for text in texts)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a prompt is not valid UTF-8 (near character {error.start}). Give valid UTF-8."
        ) from None
    if not ids or not all(ids):
        raise UsageError("there is nothing to read: a prompt is empty.")
    return Prompts(ids)
