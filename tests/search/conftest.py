"""Lets the tests of this folder import their helpers; the recognisers that they share."""

import sys
from pathlib import Path

import pytest
import torch

from asrkit.search.recogniser import Recogniser, load

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", params=[("conformer", 4), ("lstm", 1)], ids=["conformer, beam", "lstm, greedy"])
def recogniser(request, make_experiment, tmp_path_factory) -> Recogniser:
    kind, beam = request.param
    return load(make_experiment(tmp_path_factory.mktemp(kind), kind), beam)


@pytest.fixture
def seen(recogniser, monkeypatch) -> list[torch.Tensor]:
    """The encoder frames (T, D) that the search has been given, one tensor a call."""
    chunks: list[torch.Tensor] = []
    advance = recogniser.search.advance

    def spy(state, encoder_out, lens):
        chunks.append(encoder_out[0, : int(lens[0])])
        advance(state, encoder_out, lens)

    monkeypatch.setattr(recogniser.search, "advance", spy)
    return chunks
