"""What the references' tests read."""

from __future__ import annotations

import numpy as np
import pytest

# Rows of the vocabularies of the models here, and tokens of a text.
VOCABULARY, POSITIONS = 300, 40


@pytest.fixture(scope="session")
def ids() -> list[int]:
    return [int(i) for i in np.random.default_rng(12).integers(1, VOCABULARY, POSITIONS)]
