"""Lattices: complete where the beam is wide, richer than the N-best where it is narrow."""

import json

import pytest
import torch
from tiny_models import DIM, bigram, search_all, tiny_model

from asrkit.search.beam import BeamSearch
from asrkit.search.lattice import lattice_nbest, lattices

TOPOLOGIES = ["regular", "modified", "constrained"]


def searched(search, encoder_out, lens):
    state = search.start(len(encoder_out))
    search.advance(state, encoder_out, lens)
    return state


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_all_paths_of_a_wide_beam(topology):
    """No two hypotheses share a node when nodes know all labels, so the lattice's paths are the hypotheses."""
    search = BeamSearch(
        tiny_model(topology=topology),
        200,
        [(bigram(), 0.5)],
        -0.3,
        max_symbols=2,
        max_drop=torch.inf,
        keep_lattice=True,
    )
    state = searched(search, torch.randn(1, 3, DIM), torch.tensor([3]))
    (lattice,) = lattices(search, state, context=9)
    expected = {tuple(path.tokens): path for path in search.hypotheses(state)[0]}
    paths = lattice_nbest(lattice, 200)
    assert {tuple(path.tokens) for path in paths} == set(expected)
    assert [path.score for path in paths] == sorted((path.score for path in paths), reverse=True)
    for path in paths:
        assert path.score == pytest.approx(expected[tuple(path.tokens)].score, abs=1e-4)
        assert path.scores == pytest.approx(expected[tuple(path.tokens)].scores, abs=1e-4)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_it_holds_the_nbest_and_more(topology):
    model = tiny_model("stateless", topology=topology)
    encoder_out, lens = torch.randn(3, 14, DIM), torch.tensor([14, 0, 9])
    search = BeamSearch(model, keep_lattice=True)
    state = searched(search, encoder_out, lens)
    nbest = search.hypotheses(state)
    assert nbest == search_all(BeamSearch(model), encoder_out, lens)
    found = lattices(search, state)
    for hyps, lattice in zip(nbest, found, strict=True):
        paths = {tuple(path.tokens): path for path in lattice_nbest(lattice, 2000)}
        for hyp in hyps:
            assert paths[tuple(hyp.tokens)].score >= hyp.score - 1e-4
        assert len(paths) > len(hyps) or not hyps[0].tokens
    assert (found[1].nodes, len(found[1].arcs)) == (2, 1)  # without frames: from the start to the end


def test_arcs_are_sorted_and_go_up(tmp_path):
    search = BeamSearch(tiny_model("stateless"), keep_lattice=True)
    (lattice,) = lattices(search, searched(search, torch.randn(1, 10, DIM), torch.tensor([10])))
    assert list(lattice.arcs) == sorted(lattice.arcs, key=lambda arc: (arc.start, arc.end))
    assert all(arc.start < arc.end < lattice.nodes for arc in lattice.arcs)
    assert {arc.start for arc in lattice.arcs} == set(range(lattice.nodes - 1))  # each node leads to the end
    assert {arc.end for arc in lattice.arcs} == set(range(1, lattice.nodes))  # and comes from the start
    record = json.loads(json.dumps(lattice.to_dict()))
    assert record["nodes"] == lattice.nodes and len(record["arcs"]) == len(lattice.arcs)
    assert record["arcs"][0].keys() == {"start", "end", "token", "frame", "score", "scores"}


def test_a_search_that_keeps_nothing():
    search = BeamSearch(tiny_model())
    with pytest.raises(ValueError, match="keep_lattice"):
        lattices(search, search.start(1))
