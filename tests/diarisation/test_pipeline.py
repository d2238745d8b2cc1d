"""From what is observed to who spoke when."""

from dataclasses import replace

import numpy as np
import pytest

from asrkit.diarisation.observations import Observations
from asrkit.diarisation.particle_filter import ParticleConfig
from asrkit.diarisation.pipeline import DiarisationConfig, cluster

BETWEEN = np.array([4.0, 3.0, 2.0, 1.0])


@pytest.fixture
def alike():
    """Three people in turns of ten cells, whose voices are far too alike for a filter of births so rare."""
    labels = np.repeat([0, 1, 2, 1, 0, 2], 10)
    rng = np.random.default_rng(0)
    starts = 0.25 * np.arange(len(labels)) + 2.0 * np.arange(6).repeat(10)
    embeddings = 2 * np.eye(3, 4)[labels] + 0.1 * rng.normal(size=(len(labels), 4))
    nowhere = np.full(len(labels), np.nan)
    seen = Observations(starts, starts + 0.25, embeddings, nowhere, nowhere, np.zeros((len(labels), 0)))
    config = DiarisationConfig(particle_filter=ParticleConfig(birth=1e-9, embedding_weight=0.2))
    return seen, labels, config


@pytest.mark.parametrize("options", [{}, {"lag": 2.0}, {"turn": 1e9, "embedding_weight": 1e-3}])
def test_the_particle_filter_finds_as_many_as_there_are_at_least(alike, options):
    seen, labels, config = alike
    config = replace(config, particle_filter=replace(config.particle_filter, **options))
    assert len(np.unique(cluster(seen, BETWEEN, config))) < 3
    assert cluster(seen, BETWEEN, config, least=3, most=3).tolist() == labels.tolist()
    assert len(np.unique(cluster(seen, BETWEEN, config, least=2))) >= 2


@pytest.mark.parametrize("start", ["none", "ahc", "vbx"])
def test_nobody_speaks_where_there_are_no_cells(alike, start):
    seen, _, config = alike
    assert not len(cluster(seen[:0], BETWEEN, replace(config, start=start), least=2))
