"""Weights as they are stored multiply to the same product, and the kernel fits the mask."""

import numpy as np
import pytest
import torch

from asrkit.compress.codegen import TARGETS
from asrkit.compress.codegen.pack import MASKED_ROWS, pack
from asrkit.compress.codegen.steps import Product
from asrkit.compress.codegen.views import Buffer, View
from asrkit.compress.schemes import Scheme, make_mask

AVX2 = TARGETS["avx2"]


def product(weight, pixels=1000, groups=1):
    """Return the product of a weight (O, K) with an input whose columns lie `pixels` apart."""
    rows, columns = weight.shape
    offsets = np.arange(groups * columns).reshape(groups, columns) * pixels
    buffer, out = (Buffer("workspace", pixels * n) for n in (groups * columns, rows))
    return Product(
        path="layer",
        out=View(out, 0, ()),
        x=buffer,
        start=0,
        weight=weight,
        columns=offsets,
        bias=np.zeros(rows, np.float32),
        rows=np.arange(rows) * pixels,
        pixels=pixels,
        macs=weight.size * pixels,
    )


def pruned(shape, scheme, ratio, seed=0):
    """Return a weight as a matrix (O, K)."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if scheme != "dense":
        weight *= make_mask(weight, Scheme.parse(scheme), ratio)
    return weight.flatten(1).numpy()


def multiplied(packed, x, rows):
    """Return the product with x, a value for each offset, as the kernels compute it, row after row."""
    columns, weights = iter(packed.columns), iter(packed.weights)
    vector = packed.kernel == "vector"
    blocks = packed.counts.reshape(-1, 1) if vector else packed.counts
    result = np.zeros(-(-rows // packed.rows) * packed.rows + len(blocks) * packed.rows)
    for block, counts in enumerate(blocks):
        height = packed.rows if vector else min(packed.rows, rows - block * packed.rows)
        masked = packed.kernel == "masked" and height == MASKED_ROWS
        for n, count in enumerate(counts, 1):
            members = [r for r in range(height) if n >> r & 1] if masked else range(height)
            for _ in range(count):
                value = x[next(columns)]
                for r in members:
                    result[block * packed.rows + r] += next(weights) * value
    assert next(columns, None) is None and next(weights, None) is None
    return result[:rows]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "scheme", ["dense", "unstructured", "filter", "channel", "pattern", "block 4x4", "punched 4x1", "punched 3x5"]
)
@pytest.mark.parametrize("pixels", [1, 9, 1000])
def test_stored_weights_multiply_to_the_same_product(name, scheme, pixels):
    target = TARGETS[name]
    for rows, inner, groups in ((32, 6, 1), (23, 6, 1), (24, 2, 3), (10, 1, 10)):
        weight = pruned((rows, inner, 3, 3), scheme, 0.7)
        step = product(weight, pixels, groups)
        packed = pack(step, target)
        assert sorted(packed.order) == list(range(rows))
        x = np.random.default_rng(0).normal(size=step.columns.max() + 1)
        inputs = x[step.columns].repeat(rows // groups, axis=0)  # (O, K)
        found = np.zeros(rows)
        found[packed.order] = multiplied(packed, x, rows)
        np.testing.assert_allclose(found, (weight * inputs).sum(axis=1), atol=1e-4)
        assert packed.stored >= np.count_nonzero(weight)


@pytest.mark.parametrize("name", TARGETS)
def test_the_kernel_fits_the_mask(name):
    target = TARGETS[name]
    shape = (64, 32, 3, 3)
    half, punched, dense = (
        pack(product(pruned(shape, scheme, 0.5)), target) for scheme in ("unstructured", "punched 4x1", "dense")
    )
    assert half.kernel == "masked" and half.stored == 64 * 288 // 2
    assert punched.kernel == "shared" and dense.kernel == "shared"
    assert dense.stored == dense.columns.size * dense.rows == 64 * 288
    sparse = pruned(shape, "unstructured", 0.9)
    assert pack(product(sparse), target).stored == np.count_nonzero(sparse)
    assert pack(product(sparse, pixels=1), target).kernel == "vector"


@pytest.mark.parametrize(
    ("scheme", "rows"), [("punched 4x1", 4), ("punched 8x1", 8), ("punched 16x1", 16), ("dense", 16)]
)
def test_for_one_pixel_blocks_keep_their_columns(scheme, rows):
    weight = pruned((64, 32, 3, 3), scheme, 0.8)
    packed = pack(product(weight, pixels=1), TARGETS["avx512"])
    assert (packed.kernel, packed.rows, packed.stored) == ("vector", rows, np.count_nonzero(weight))
    assert packed.counts.shape == (64 // 16, 16 // rows)


@pytest.mark.parametrize("scheme", ["punched 4x1", "punched 8x1", "filter", "channel"])
def test_regular_masks_store_no_zeros_and_few_columns(scheme):
    weight = pruned((64, 32, 3, 3), scheme, 0.8)
    packed = pack(product(weight), AVX2)
    assert packed.stored == np.count_nonzero(weight)
    assert packed.columns.size * 4 <= packed.stored


def test_equal_rows_come_together_wherever_they_lie():
    weight = pruned((64, 32, 3, 3), "punched 4x1", 0.8)
    mixed = weight[np.random.default_rng(0).permutation(64)]
    packed = pack(product(mixed), AVX2)
    assert (packed.kernel, packed.stored) == ("shared", np.count_nonzero(weight))


def test_an_empty_layer_stores_nothing():
    for pixels in (1, 1000):
        packed = pack(product(np.zeros((8, 5), np.float32), pixels), AVX2)
        assert packed.stored == packed.columns.size == 0
