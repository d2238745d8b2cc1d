"""What is compiled extends and merges as plain torch does; places and unused extensions may differ."""

import pytest
import torch

from asrkit.search import extensions_numba
from asrkit.search.extensions import extend_torch, merge_torch
from asrkit.search.labels import Labels


def beam(n: int, k: int, scorers: int, seed: int):
    """Hypotheses of n utterances, some places not in use; their hashes are small, so that some will be equal."""
    draw = torch.Generator().manual_seed(seed)
    scores = -5 * torch.rand(n * k, 2 + scorers, generator=draw)
    scores.view(n, k, -1)[::2, k - 1 :, :2] = -torch.inf
    hashes = torch.stack([torch.randperm(3 * k, generator=draw)[:k] for _ in range(n)])
    return scores, torch.stack([hashes.flatten(), torch.arange(n * k)], dim=1), draw


@pytest.mark.parametrize("scorers", [0, 2])
@pytest.mark.parametrize("fewer", [False, True])
@pytest.mark.parametrize("k", [1, 4])
def test_extensions(k, fewer, scorers):
    n, width = 7, max(2, k)
    scores, ids, draw = beam(n, k, scorers, seed=k)
    places = torch.randperm(n * k, generator=draw)[: n * k // 2].sort().values if fewer else torch.arange(n * k)
    scores, ids = scores[places], ids[places]
    fused = (-4 * torch.rand(len(places), width, generator=draw)).sort(dim=1, descending=True).values
    tokens = torch.randint(1, 50, (len(places), width), generator=draw)
    labels = Labels(fused[:, 0], tokens, fused - 0.1, fused, fused.logsumexp(dim=1) + 0.1)
    floor = torch.linspace(-9, 0, n)  # of the last utterances nothing is good enough
    given = scores, ids, places, labels, floor, k
    expected, found = extend_torch(*given), extensions_numba.extend(*given)
    assert expected[0].tolist() == found[0].tolist() and 0 < len(found[0]) < n
    used = expected[3][:, 0] > -torch.inf
    assert torch.equal(used, found[3][:, 0] > -torch.inf) and 0 < used.sum()
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours[used], theirs[used])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_merged_beams(k, seed, late):
    n = 9
    scores, ids, draw = beam(n, k, 1, seed)
    rows = torch.tensor([0, 2, 3, 8])
    new_scores, new_ids, _ = beam(len(rows), k, 1, seed + 100)
    new_scores[:: k + 1, :2] -= 9.0
    results = []
    for function in (merge_torch, extensions_numba.merge):
        beams, extensions = (scores.clone(), ids.clone()), new_scores.clone()
        freed, born = function(*beams, rows, extensions, new_ids, k, late)
        assert len(set(freed.tolist())) == len(freed)
        torch.testing.assert_close(beams[0][freed], extensions[born])
        assert torch.equal(beams[1][freed], new_ids[born])
        order = (torch.arange(n * k) // k * 10**6 + beams[1][:, 0] + 10**3 * (beams[0][:, 0] == -torch.inf)).argsort()
        results.append((beams[0][order], beams[1][order], born.sort().values))
    (scores, ids, born), (other_scores, other_ids, other_born) = results
    torch.testing.assert_close(scores, other_scores)
    alive = scores[:, 0] > -torch.inf
    assert torch.equal(ids[alive], other_ids[alive]) and torch.equal(born, other_born)
