"""A tokenizer and texts of a small grammar."""

import random

import pytest

from asrkit.text.tokenizer import Tokenizer, train_bpe

NAMES, VERBS, THINGS = ["anna", "bo", "carla", "dan"], ["sees", "takes", "likes"], ["apples", "stones", "a cat", "dogs"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Three hundred sentences."""
    draw = random.Random(1)
    return [" ".join(draw.choice(words) for words in (NAMES, VERBS, THINGS)) for _ in range(300)]


@pytest.fixture(scope="session")
def tokenizer(texts) -> Tokenizer:
    return train_bpe(texts, 40)
