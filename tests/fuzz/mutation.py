"""Seeded mutations of files: the same seed gives the same inputs on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_INTERESTING = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 1 << 31, (1 << 32) - 1, 1 << 63)
_WORDS = (b"0", b"-1", b"null", b"true", b"[]", b"{}", b'""', b"1e999", b"NaN", b"../", b"\0", b'"')


def mutations(seeds: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` inputs, each a seed with one to six changes."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(1 << rng.randrange(3) if rng.random() < 0.8 else 6):
            _change(rng, data, seeds)
        yield bytes(data)


def _change(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    place = rng.randrange(len(data) + 1)
    length = rng.randrange(1, 2 + min(64, len(data)))
    kind = rng.randrange(8)
    if kind == 0 and place < len(data):
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1 and place < len(data):
        data[place] = rng.randrange(256)
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = data[place : place + length]
    elif kind == 4:
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice(_INTERESTING) + rng.randrange(-2, 3)
        data[place : place + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    elif kind == 5:
        data[place : place + rng.randrange(4)] = rng.choice(_WORDS)
    elif kind == 6:
        other = rng.choice(seeds)
        start = rng.randrange(len(other) + 1)
        data[place : place + length] = other[start : start + length]
    else:
        del data[place:]
