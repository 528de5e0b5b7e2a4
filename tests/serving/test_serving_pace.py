"""Whose prompt is read next, and how much of it."""

from __future__ import annotations

import random

from mlc_rwkv_world.serving.pace import Clock, Pace


def learnt(decode: float, fixed: float, each: float, rounds: int = 40) -> tuple[Pace, list[float]]:
    """A pace that has seen steps take so long, and how long its pieces took, in steps."""
    pace = Pace(256)
    pieces = []
    for _ in range(rounds):
        pace.decoded(decode)
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
        pace.decoded(0.02)
    for _ in range(30):
        tokens = pace.tokens(others_decode=True)
        pace.read(tokens, 0.001 * tokens)
        pace.decoded(0.025)
        assert 0.001 * tokens + 0.025 <= 4 * 0.02


def test_it_follows_a_machine_that_gets_slower() -> None:
    pace, _ = learnt(decode=0.02, fixed=0.01, each=0.0005)
    for _ in range(30):
        pace.decoded(0.02)
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
        pace.decoded(0.009)
        tokens = pace.tokens(others_decode=True)
        seconds = 0.004 * tokens
        pace.read(tokens, seconds)
        late += seconds > 4 * 0.009
    assert late <= 2


def test_noise_does_not_lead_it_astray() -> None:
    pace = Pace(256)
    noise = random.Random(1)
    late = 0
    for _ in range(500):
        pace.decoded(0.02 * noise.uniform(0.9, 1.2))
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
