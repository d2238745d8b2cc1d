"""Steps that are computed a chunk of the pixels at a time give what torch gives, and take less memory."""

import pytest
import torch
from torch import nn

from asrkit.compress.codegen import TARGETS, chains
from asrkit.compress.codegen.chains import Chain, chain
from asrkit.compress.codegen.graph import fuse
from asrkit.compress.codegen.plan import plan
from asrkit.compress.codegen.trace import trace

AVX2 = TARGETS["avx2"]  # vectors of 8


@pytest.fixture
def one_vector(monkeypatch):
    """Chunks of one vector of pixels: whatever can be a chain is one."""
    monkeypatch.setattr(chains, "CHUNK", 1)


class FeedForward(nn.Module):
    """Of a Conformer, with its residual."""

    def __init__(self, dim, inner):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(dim), nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x):
        return x + 0.5 * self.second(nn.functional.silu(self.first(self.norm(x))))


class Gated(nn.Module):
    """A pointwise convolution whose halves gate each other, and what is inside as a second output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(6, 20, 1), nn.Conv1d(10, 6, 1)

    def forward(self, x):
        inside = nn.functional.glu(self.first(x), 1)
        return self.second(inside) + x, inside


class Pointwise(nn.Module):
    """1x1 convolutions after a 3x3 one that reads neighbours, and before another."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 12, 1), nn.Conv2d(12, 5, 1), nn.ReLU(),
            nn.Conv2d(5, 4, 3, padding=1, groups=1),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


NETWORKS = {
    "linear": lambda: (nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 7)), torch.randn(1, 43, 5)),
    "one linear": lambda: (nn.Linear(20, 18), torch.randn(43, 20)),
    "feed-forward": lambda: (FeedForward(10, 24), torch.randn(1, 43, 10)),
    "gated": lambda: (Gated(), torch.randn(1, 6, 61)),
    "pointwise": lambda: (Pointwise(), torch.randn(1, 3, 9, 11)),
    "pictures": lambda: (nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(4))), torch.randn(1, 8, 10, 10)),
}


@pytest.mark.parametrize("target", ["avx512", "avx2", "portable"], indirect=True)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_chains_give_what_torch_gives(make, target, check, one_vector):
    torch.manual_seed(0)
    model, x = make()
    network = check(model, x, target=target)
    assert "PART(part_" in (network.folder / "model.c").read_text()
    assert set(network.profile(1)) == {step["path"] for step in network.steps}


def planned(model, x):
    graph = trace(model.eval(), (x,))
    fuse(graph)
    return plan(graph, AVX2)


def test_what_only_the_chain_reads_has_a_place_for_a_chunk(one_vector):
    model, x = NETWORKS["linear"]()
    steps = planned(model, x)
    (found,) = steps.chains
    assert (found.first, found.last) == (0, len(steps.steps) - 1)  # from the copy of the input to that of the output
    assert (found.chunks, found.pixels, found.most, found.large, found.last_pixels) == (6, 43, 1, 6, 3)
    inside = [step.out.buffer for step in steps.steps[:-1]]
    assert [buffer.size for buffer in inside] == [5 * 8, 12 * 8, 7 * 8]
    assert {buffer.apart for buffer in inside} == {steps.workspace // 6}


def test_what_others_read_too_has_a_place_for_all_pixels(one_vector):
    product = next(step for step in planned(*NETWORKS["gated"]()).steps if getattr(step, "operands", ()))
    assert product.x.apart == 0 and product.x.size >= 10 * 61
    assert all(operand.buffer.apart for operand in product.operands)  # the input, whose copy nobody else reads


def test_a_convolution_that_reads_neighbours_ends_a_chain(one_vector):
    steps = planned(*NETWORKS["pointwise"]())
    paths = [[steps.steps[i].path for i in range(c.first, c.last + 1)] for c in steps.chains]
    assert ["layers.0", "layers.2", "layers.3"] in paths
    assert all("layers.5" not in path for path in paths)


def test_one_chunk_is_no_chain():
    model, x = NETWORKS["linear"]()
    assert planned(model, x).chains == []
    assert chain([], AVX2) == []


@pytest.mark.parametrize(("chunks", "pixels"), [(4, 100), (3, 96), (13, 97), (5, 160)])
def test_chunks_cover_all_pixels(chunks, pixels):
    found = Chain(0, 1, chunks, pixels, 8)
    vectors = [found.most if i < found.large else found.most - 1 for i in range(chunks)]
    assert sum(vectors) == -(-pixels // 8) and min(vectors) >= 1
    assert (sum(vectors[:-1])) * 8 + found.last_pixels == pixels


class Crosswise(nn.Module):
    """Reads what a product has written at the same pixel and, in the same step, at others."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        y = self.first(x)
        return self.second(y * y.transpose(1, 2))


def test_a_step_that_reads_other_pixels_too_ends_a_chain(check, one_vector):
    torch.manual_seed(0)
    model, x = Crosswise(), torch.randn(1, 16, 16)
    steps = planned(model, x)
    crosswise = next(i for i, step in enumerate(steps.steps) if step.path == "network")
    assert not any(found.first <= crosswise <= found.last for found in steps.chains)
    check(model, x)
