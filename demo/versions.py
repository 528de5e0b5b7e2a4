"""The models that the repository ships: their versions, files, questions and styles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import unpack
from data import Style
from language_model import LanguageModel
from rwkv4 import Rwkv4
from rwkv7 import Rwkv7

FOLDER = Path(__file__).parent
QUESTIONS, THOUGHTS = FOLDER / "questions.jsonl", FOLDER / "thoughts.jsonl"


@dataclass(frozen=True)
class Version:
    """A style that stands twice among `styles` is drawn twice as often in training."""

    model: type[LanguageModel]
    file: Path
    questions: tuple[Path, ...]
    styles: tuple[Style, ...]


VERSIONS = {
    "4": Version(Rwkv4, unpack.FILES["4"], (QUESTIONS,), (Style.WORLD,)),
    "7": Version(
        Rwkv7,
        unpack.FILES["7"],
        (QUESTIONS, THOUGHTS),
        (Style.WORLD, Style.WORLD, Style.SILENT, Style.SHORT, Style.THINKING, Style.THINKING),
    ),
}
