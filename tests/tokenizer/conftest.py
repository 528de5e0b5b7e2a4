from __future__ import annotations

import random
from pathlib import Path

import pytest
import rwkv
from hypothesis import HealthCheck, settings
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from mlc_rwkv_world.tokenizer import WorldTokenizer

# How long a machine takes that others load says nothing of the tokenizer.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def tokenizer() -> WorldTokenizer:
    return WorldTokenizer.default()


@pytest.fixture(scope="session")
def vocabulary_text() -> Path:
    """BlinkDL's own vocabulary file, with CRLF."""
    return Path(str(rwkv.__file__)).parent / "rwkv_vocab_v20230424.txt"


@pytest.fixture(scope="package")
def reference(vocabulary_text: Path) -> TRIE_TOKENIZER:
    """BlinkDL's own tokenizer."""
    return TRIE_TOKENIZER(str(vocabulary_text))


@pytest.fixture
def rng() -> random.Random:
    return random.Random(20230424)
