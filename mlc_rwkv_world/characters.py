"""Which characters of a text from elsewhere reach a terminal.

A file's name, a library's metadata or a model's answer may hold characters that move the cursor,
set colours and titles, or show a line in another order than it has.
"""

from __future__ import annotations

# Controls of both sets; marks, embeddings, overrides and isolates of direction; lone surrogates.
_STEERING = (
    *(range(0x20), range(0x7F, 0xA0), (0x061C, 0x200E, 0x200F)),
    *(range(0x202A, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000)),
)
_REPLACED = {code: "\N{REPLACEMENT CHARACTER}" for codes in _STEERING for code in codes}
del _REPLACED[ord("\n")], _REPLACED[ord("\t")]


def printable(text: str) -> str:
    """`text` as one line, with every character escaped that is not shown as itself.

    For messages, and for names and other words in them, which could else pretend to be messages.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def prose(text: str) -> str:
    """`text` with U+FFFD for each character that could steer a terminal or reorder its line.

    For what a model says: line feeds and tabs stay, and so do the joiners and spaces that scripts
    and emoji are written with.
    """
    return text.translate(_REPLACED)
