import sys

import numpy as np
import pytest

from asrkit.diarisation.spectral import FEWEST_NODES, spectral_clustering
from asrkit.errors import InputError

SPEAKERS = np.repeat([0, 1, 2, 0, 1, 2], 20)


@pytest.fixture(scope="module")
def embeddings():
    pytest.importorskip("spectralcluster")
    return 4 * np.eye(5)[SPEAKERS] + np.random.default_rng(0).normal(size=(len(SPEAKERS), 5)) / 2


def test_finds_the_speakers_the_same_way_each_time(embeddings):
    for _ in range(2):
        assert spectral_clustering(embeddings).tolist() == SPEAKERS.tolist()


def test_number_of_speakers(embeddings):
    assert spectral_clustering(embeddings, least=4).max() + 1 >= 4
    assert spectral_clustering(embeddings, most=2).max() + 1 <= 2


@pytest.mark.parametrize("cells", [0, 1, FEWEST_NODES - 1])
def test_few_cells(embeddings, cells):
    assert spectral_clustering(embeddings[:cells]).tolist() == [0] * cells


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "spectralcluster", None)
    with pytest.raises(InputError, match=r"asrkit\[meetings\]"):
        spectral_clustering(np.eye(3))
