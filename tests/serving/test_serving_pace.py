"""Whose prompt is read next, and how much of it."""

from __future__ import annotations

import random

import pytest

from mlc_rwkv_world.serving.pace import Clock, Pace


def learnt(decode: float, fixed: float, each: float, rounds: int = 40) -> tuple[Pace, list[float]]:
    """A pace that has seen steps take so long, and how long its pieces took, in steps."""
    pace = Pace(256)
    pieces = []
    for _ in range(rounds):
        pace.decoded(decode, 1)
        tokens = pace.tokens(others_decode=True)
        pace.read(tokens, fixed + each * tokens)
        pieces.append((fixed + each * tokens) / decode)
    return pace, pieces


def test_a_piece_takes_two_and_a_half_steps_at_most() -> None:
    _, pieces = learnt(decode=0.02, fixed=0.015, each=0.001)
    assert max(pieces) <= 2.5
    assert min(pieces[5:]) > 2.2


def test_steps_behind_a_piece_take_longer() -> None:
    """Four usual steps are kept all the same."""
    pace = Pace(256)
    for _ in range(20):
        pace.decoded(0.02, 1)
    for _ in range(30):
        tokens = pace.tokens(others_decode=True)
        pace.read(tokens, 0.001 * tokens)
        pace.decoded(0.025, 1)
        assert 0.001 * tokens + 0.025 <= 4 * 0.02


def test_it_follows_a_machine_that_gets_slower() -> None:
    pace, _ = learnt(decode=0.02, fixed=0.01, each=0.0005)
    for _ in range(30):
        pace.decoded(0.02, 1)
        tokens = pace.tokens(others_decode=True)
        pace.read(tokens, 0.01 + 0.005 * tokens)
    assert pace.tokens(others_decode=True) in range(6, 10)


def test_large_pieces_do_not_decide_of_small_ones() -> None:
    """Where nobody waited, pieces were large, and faster for each token than small ones are."""
    pace = Pace(256)
    for _ in range(50):
        pace.read(256, 0.4)
    late = 0
    for _ in range(20):
        pace.decoded(0.009, 1)
        tokens = pace.tokens(others_decode=True)
        seconds = 0.004 * tokens
        pace.read(tokens, seconds)
        late += seconds > 4 * 0.009
    assert late <= 2


def costs(count: int) -> float:
    """Seconds of a step for so many that answer, as a model of 0.4B took on two cores."""
    return 0.006 + 0.004 * count


def piece(tokens: int) -> float:
    """Seconds of a piece there."""
    return 0.008 + 0.0013 * tokens


def test_one_who_is_left_of_many_waits_no_longer() -> None:
    """What was a good piece between steps for 32 is many steps for one."""
    pace = Pace(512)
    for _ in range(60):
        pace.decoded(costs(32), 32)
        tokens = pace.tokens(others_decode=True)
        pace.read(tokens, piece(tokens))
    for count in (*range(31, 0, -3), *[1] * 40):
        pace.decoded(costs(count), count)
    late = 0
    for _ in range(20):
        tokens = pace.tokens(others_decode=True)
        pace.read(tokens, piece(tokens))
        late += piece(tokens) + costs(1) > 4 * costs(1)
        pace.decoded(costs(1), 1)
    assert late <= 1


@pytest.mark.parametrize("seen", [False, True])
def test_pieces_grow_with_those_that_answer(seen: bool) -> None:
    """While many prompts come every step is behind a piece; pieces follow all the same."""
    pace = Pace(512)
    if seen:
        for count in range(1, 33):
            pace.decoded(costs(count), count)
    for _ in range(60):
        pace.decoded(costs(1), 1)
        tokens = pace.tokens(others_decode=True)
        pace.read(tokens, piece(tokens))
    pieces = []
    for count in range(1, 33):
        pace.decoded(1.1 * costs(count), count)
        tokens = pace.tokens(others_decode=True)
        pace.read(tokens, piece(tokens))
        pieces.append(piece(tokens) / costs(count))
    assert min(pieces[4:]) > 1.8 and max(pieces) < 3


def test_noise_does_not_lead_it_astray() -> None:
    pace = Pace(256)
    noise = random.Random(1)
    late = 0
    for _ in range(500):
        pace.decoded(0.02 * noise.uniform(0.9, 1.2), 1)
        tokens = pace.tokens(others_decode=True)
        seconds = (0.015 + 0.001 * tokens) * noise.uniform(0.9, 1.2)
        pace.read(tokens, seconds)
        late += seconds > 4 * 0.02
    assert late <= 5


def test_where_nobody_waits_all_is_read_at_once() -> None:
    pace, _ = learnt(decode=0.02, fixed=0.0, each=0.01)
    assert pace.tokens(others_decode=False) == 256
    assert pace.tokens(others_decode=True) < 8
    # Something is read even where it takes longer than that.
    pace, _ = learnt(decode=0.001, fixed=1.0, each=0.01)
    assert pace.tokens(others_decode=True) == 1
    assert Pace(8).tokens(others_decode=True) == 8


def test_no_prompt_is_passed_for_ever() -> None:
    """By twice its own length at most, however many shorter ones come."""
    clock = Clock()
    long = clock.rank(4000, clock.now)
    passed = 0
    while clock.rank(10, clock.now) < long:
        clock.read(10)
        passed += 10
    assert 7900 <= passed <= 8000
