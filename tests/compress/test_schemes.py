import itertools
import math

import pytest
import torch

from asrkit.compress.schemes import (
    PATTERNS,
    Scheme,
    check,
    group_norms,
    group_sizes,
    make_mask,
    mask_of,
    weight_scores,
)
from asrkit.errors import InputError

SCHEMES = [
    Scheme.parse(text)
    for text in ("unstructured", "filter", "channel", "punched 4x1", "punched 8x4", "punched 3x5")
    + ("block 4x4", "block 16x8", "block 5x7")
]
SHAPES = [  # weight, groups of the convolution
    ((24, 16), 1),
    ((10, 7), 1),
    ((16, 8, 5), 1),
    ((12, 6, 3, 3), 1),
    ((11, 3, 5, 5), 1),
    ((16, 8, 1, 1), 1),
    ((12, 4, 3), 3),
    ((10, 1, 3, 3), 10),
]


def weight_of(shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def groups_by_hand(shape, scheme, conv_groups):
    """List the groups as sets of flat weight indices, from the definitions, one weight at a time."""
    filters, channels, taps = shape[0], shape[1], math.prod(shape[2:])
    part = filters // conv_groups
    sets = {}
    for index, (o, i, k) in enumerate(itertools.product(range(filters), range(channels), range(taps))):
        p, q = scheme.block
        conv_group, row = divmod(o, part)
        if conv_groups == filters and scheme.has_block:
            conv_group, row = 0, o
        column = i * taps + k
        names = {
            "unstructured": [index],
            "filter": [o],
            "channel": [(conv_group, i)],
            "pattern": [(o, i)],
            "punched": [(conv_group, row // p, i // q, k)],
            "block": [("row", o, column // q), ("column", conv_group, row // p, column)],
        }[scheme.kind]
        for name in names:
            sets.setdefault(name, []).append(index)
    return [frozenset(indices) for indices in sets.values()]


@pytest.mark.parametrize("shape, conv_groups", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_groups_are_those_of_the_definition(scheme, shape, conv_groups):
    weight = weight_of(shape)
    flat = weight.flatten().double()
    groups = groups_by_hand(shape, scheme, conv_groups)
    norms = sorted(flat[list(indices)].square().sum().item() for indices in groups)
    assert sorted(group_norms(weight.double(), scheme, conv_groups).tolist()) == pytest.approx(norms)
    sizes = sorted(len(indices) for indices in groups)
    assert sorted(group_sizes(weight, scheme, conv_groups).tolist()) == sizes


@pytest.mark.parametrize("shape, conv_groups", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_masks_remove_whole_groups_and_the_ratio_within_one(scheme, shape, conv_groups):
    weight = weight_of(shape)
    groups = groups_by_hand(shape, scheme, conv_groups)
    largest = max(map(len, groups))
    for ratio in (0.0, 0.3, 0.5, 0.8, 0.97):
        mask = make_mask(weight, scheme, ratio, conv_groups).flatten()
        removed = set((~mask).nonzero().flatten().tolist())
        assert set().union(*(indices for indices in groups if indices <= removed)) == removed
        assert mask.any()
        assert len(removed) <= round(ratio * len(mask)) + largest - 1 if ratio else not removed
        assert len(removed) >= min(round(ratio * len(mask)), len(mask) - largest)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_weaker_groups_go_first(scheme):
    weight = weight_of((12, 6, 3, 3))
    scores = weight_scores(weight, scheme)
    mask = make_mask(weight, scheme, 0.6)
    assert scores[mask].min() > scores[~mask].max()
    sizes, norms = group_sizes(weight, scheme), group_norms(weight, scheme)
    assert torch.isin(scores, (norms / sizes).sqrt()).all()


@pytest.mark.parametrize("shape, conv_groups", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_higher_ratio_removes_more_of_the_same(scheme, shape, conv_groups):
    weight = weight_of(shape)
    masks = [make_mask(weight, scheme, ratio, conv_groups) for ratio in (0, 0.2, 0.4, 0.6, 0.8)]
    assert all((wide | narrow).equal(wide) for wide, narrow in itertools.pairwise(masks))


@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme("pattern")], ids=str)
def test_pruning_again_changes_nothing(scheme):
    weight = weight_of((11, 7, 3, 3))
    pruned = weight * make_mask(weight, scheme, 0.7)
    assert torch.equal(pruned * make_mask(pruned, scheme, 0.7), pruned)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_equal_weights_do_not_all_go(scheme):
    for weight in (torch.ones(16, 8, 3, 3), torch.zeros(16, 8, 3, 3)):
        mask = make_mask(weight, scheme, 0.5)
        assert mask.float().mean() == pytest.approx(0.5, abs=0.05)


def test_one_group_stays():
    for scheme, size in [("filter", 18), ("channel", 4 * 9), ("punched 4x2", 8), ("unstructured", 1), ("pattern", 4)]:
        assert make_mask(weight_of((4, 2, 3, 3)), Scheme.parse(scheme), 0.999).sum() == size
    assert make_mask(weight_of((1, 2, 3, 3)), Scheme("filter"), 0.9).all()


@pytest.mark.parametrize("conv_groups, shape", [(1, (12, 8, 3, 3)), (3, (12, 8, 3, 3)), (1, (12, 8, 7))])
def test_kernels_of_a_punched_block_share_their_taps(conv_groups, shape):
    mask = make_mask(weight_of(shape), Scheme("punched", (4, 2)), 0.6, conv_groups)
    blocks = mask.reshape(3, 4, 4, 2, -1)
    assert torch.equal(blocks.all((1, 3), keepdim=True).expand_as(blocks), blocks)
    counts = blocks.all((1, 3)).sum(-1)
    assert counts.min() < counts.max()  # blocks are not balanced


def test_punching_a_1x1_convolution_is_block_sparsity():
    weight = weight_of((8, 8, 1, 1))
    blocks = make_mask(weight, Scheme("punched", (4, 2)), 0.5).reshape(2, 4, 4, 2)
    assert torch.equal(blocks.all(3).all(1), blocks.any(3).any(1))
    assert torch.equal(make_mask(weight, Scheme("punched", (4, 2)), 0.5).flatten(1), blocks.reshape(8, 8))


def test_a_block_keeps_a_smaller_matrix_and_each_its_own():
    blocks = make_mask(weight_of((16, 24)), Scheme("block", (8, 6)), 0.5).reshape(2, 8, 4, 6)
    rows, columns = blocks.any(3, keepdim=True), blocks.any(1, keepdim=True)
    assert torch.equal(rows & columns, blocks)
    assert not torch.equal(rows[:, :, 0], rows[:, :, 1])
    assert (rows.sum(1) < 8).any() and (columns.sum(3) < 6).any()


def test_blocks_start_anew_with_each_group_of_a_convolution():
    weight = weight_of((10, 4, 3))
    halves = [group_norms(half, Scheme("punched", (4, 2))) for half in weight.chunk(2)]
    assert torch.equal(group_norms(weight, Scheme("punched", (4, 2)), conv_groups=2), torch.cat(halves))


def test_neighbours_of_a_depthwise_convolution_share_their_taps():
    mask = make_mask(weight_of((16, 1, 3, 3)), Scheme("punched", (4, 1)), 0.5, conv_groups=16)
    blocks = mask.reshape(4, 4, 9)
    assert torch.equal(blocks.all(1), blocks.any(1))


def test_patterns():
    assert PATTERNS.sum(1).tolist() == [4] * 8
    assert PATTERNS[:, 4].all()  # the centre
    assert len({tuple(pattern.tolist()) for pattern in PATTERNS}) == 8


@pytest.mark.parametrize("ratio, kernels", [(0.556, 96), (0.8, 43), (0.9, 21)])
def test_pattern_with_connectivity(ratio, kernels):
    weight = weight_of((12, 8, 3, 3))
    mask = make_mask(weight, Scheme("pattern"), ratio)
    kept = mask.flatten(2).any(-1)
    assert kept.sum() == kernels
    assert 1 - mask.float().mean() >= ratio - 1e-3
    best = torch.stack([(weight.flatten(2) * pattern).square().sum(-1) for pattern in PATTERNS]).argmax(0)
    assert torch.equal(mask.flatten(2), PATTERNS[best] & kept[..., None])
    assert torch.equal(mask_of(kept.flatten(), weight, Scheme("pattern")), mask)


@pytest.mark.parametrize("shape, conv_groups", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_mask_of_kept_groups(scheme, shape, conv_groups):
    weight = weight_of(shape)
    norms = group_norms(weight, scheme, conv_groups)
    kept = torch.rand(len(norms), generator=torch.Generator().manual_seed(1)) < 0.6
    mask = mask_of(kept, weight, scheme, conv_groups)
    assert (group_norms(weight * mask, scheme, conv_groups)[~kept] == 0).all()
    if scheme.kind != "block":  # whose rows and columns overlap
        assert torch.allclose(group_norms(weight * mask, scheme, conv_groups)[kept], norms[kept])


@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme("pattern")], ids=str)
def test_gradient_of_the_norms(scheme):
    weight = weight_of((5, 4, 3, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda weight: group_norms(weight, scheme), weight)


def test_text_form():
    assert str(Scheme("punched", (8, 4))) == "punched 8x4"
    for scheme in [*SCHEMES, Scheme(), Scheme("pattern")]:
        assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    "text, message",
    [
        ("squared", "'squared': not one of dense, unstructured"),
        ("punched", "must be written like 'punched 8x4'"),
        ("filter 4x1", "must be written like 'filter'"),
        ("block 0x4", "at least one row"),
        ("block 4", "not one of"),
        ("", "not one of"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(InputError, match=message):
        Scheme.parse(text)


@pytest.mark.parametrize(
    "scheme, ratio, shape, message",
    [
        ("filter", 1.0, (4, 4), "ratio 1: must be at least 0 and below 1"),
        ("filter", -0.1, (4, 4), "ratio -0.1"),
        ("filter", math.nan, (4, 4), "ratio nan"),
        ("dense", 0.5, (4, 4), "dense removes nothing"),
        ("pattern", 0.5, (4, 4, 3, 3), "5 of 9 weights"),
        ("pattern", 0.6, (4, 4, 5, 5), "3x3 kernels only, not a weight of shape 4x4x5x5"),
        ("pattern", 0.6, (4, 9), "3x3 kernels only"),
        ("filter", 0.6, (4,), "no filters and channels"),
    ],
)
def test_refused(scheme, ratio, shape, message):
    with pytest.raises(InputError, match=message):
        make_mask(torch.ones(shape), Scheme.parse(scheme), ratio)


def test_dense():
    weight = weight_of((4, 3))
    check(Scheme(), weight)
    assert make_mask(weight, Scheme(), 0.0).all()
    assert group_norms(weight, Scheme()).shape == (0,)
    assert mask_of(torch.zeros(0, dtype=torch.bool), weight, Scheme()).all()
