"""Random networks with random masks of every scheme give what torch gives, on each target."""

import random

import pytest
import torch
from torch import nn

from asrkit.compress.codegen import chains
from asrkit.compress.schemes import Scheme, make_mask
from asrkit.compress.sparsity import conv_groups, prunable_layers
from asrkit.nn.encoders import Conformer, EncoderConfig

KERNELS = [(1, 1), (3, 3), (3, 3), (5, 5), (3, 1), (1, 3), (2, 2)]
ACTIVATIONS = [nn.ReLU, nn.ReLU, nn.Identity, nn.LeakyReLU, nn.SiLU]
SCHEMES = ["unstructured", "filter", "channel", "pattern", "block 4x4", "block 5x3", "punched 4x1", "punched 3x2"]


class Block(nn.Module):
    """A convolution, perhaps a norm, an activation; perhaps a residual before or after that, or a concatenation."""

    def __init__(self, channels, draw):
        super().__init__()
        kernel, dilation = draw.choice(KERNELS), draw.choice([1, 1, 2])
        padding = tuple(draw.choice([k * dilation // 2, k * dilation // 2, 0, 2]) for k in kernel)
        depthwise = draw.random() < 0.25
        out = channels * draw.choice([1, 2]) if depthwise else draw.choice([channels, draw.randint(1, 40)])
        groups = channels if depthwise else draw.choice([g for g in (1, 1, 1, 2, 3) if not (channels % g or out % g)])
        settings = {"padding": padding, "dilation": dilation, "groups": groups, "stride": draw.choice([1, 1, 1, 2])}
        self.conv = nn.Conv2d(channels, out, kernel, **settings, bias=draw.random() < 0.5)
        self.norm = nn.BatchNorm2d(out) if draw.random() < 0.5 else nn.Identity()
        self.activation = draw.choice(ACTIVATIONS)()
        self.join = draw.choice(["before", "after", "concatenate", "none"])

    def forward(self, x):
        y = self.norm(self.conv(x))
        if y.shape[2:] == x.shape[2:] and self.join == "concatenate":
            return torch.cat([x, self.activation(y)], 1)
        if y.shape == x.shape and self.join == "before":
            return self.activation(x + y)
        return self.activation(y) + x if y.shape == x.shape and self.join == "after" else self.activation(y)


class Random(nn.Module):
    """Blocks on a picture, then linear layers on its rows, with masks of random schemes; also gives what is inside."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.example = x = torch.randn(1, draw.randint(1, 4), draw.randint(4, 20), draw.randint(4, 36))
        blocks = []
        for _ in range(draw.randint(2, 5)):
            block = Block(x.shape[1], draw).eval()
            for value in block.norm.buffers():
                if value.is_floating_point():
                    value.uniform_(0.5, 1.5)
            try:
                x = block(x)
            except RuntimeError:  # the picture has become smaller than the kernel
                continue
            blocks.append(block)
        self.blocks, self.looked_at = nn.ModuleList(blocks), draw.randrange(len(blocks) + 1)
        features = x.shape[1] * x.shape[3]
        self.norm, self.first = nn.LayerNorm(features), nn.Linear(features, draw.randint(1, 50))
        self.second = nn.Linear(self.first.out_features, features)
        self.prune(draw)

    def prune(self, draw):
        with torch.no_grad():
            for layer in prunable_layers(self).values():
                scheme = Scheme.parse(draw.choice(SCHEMES))
                if scheme.kind == "pattern" and layer.weight.shape[2:] != (3, 3):
                    continue
                ratio = draw.choice([0.6, 0.75, 0.9])
                layer.weight *= make_mask(layer.weight, scheme, ratio, conv_groups(layer))

    def forward(self, x):
        inside = [x]
        for block in self.blocks:
            inside.append(block(inside[-1]))
        rows = inside[-1].transpose(1, 2).flatten(2)  # (1, H, C W)
        rows = rows + self.second(self.first(self.norm(rows)).relu())
        return rows.softmax(-1), rows.mean(1), inside[self.looked_at]


class Several(nn.Module):
    """Networks side by side: compiling them together takes a fraction of the time."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs):
        return tuple(y for network, x in zip(self.networks, inputs, strict=True) for y in network(x))


@pytest.mark.parametrize("chunk", [chains.CHUNK, 1])
@pytest.mark.parametrize("target", ["avx512", "avx2", "portable"], indirect=True)
def test_random_networks_give_what_torch_gives(target, chunk, check, monkeypatch):
    monkeypatch.setattr(chains, "CHUNK", chunk)
    first = 10 * target.vector_bytes  # each has networks of its own
    networks = [Random(first + i) for i in range(3)]
    check(Several(networks), *(network.example for network in networks), target=target)


# --- states


class Step(nn.Module):
    """The step of a streaming encoder, with the state as further inputs and outputs."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, features, *state):
        out, new_state = self.encoder.step(features, list(state))
        return out, *new_state


def test_a_streaming_encoder_goes_on_from_its_state(check):
    torch.manual_seed(0)
    config = EncoderConfig(
        kind="conformer", dim=24, layers=2, heads=4, feedforward_dim=40, kernel_size=7, subsampling_channels=4,
        chunk_sizes=(0, 8), left_context=16,
    )  # fmt: skip
    encoder = Conformer(config, 20).eval()
    for layer in prunable_layers(encoder).values():
        layer.weight.data *= make_mask(layer.weight, Scheme.parse("unstructured"), 0.5, conv_groups(layer))
    state = encoder.start(1)
    chunks = torch.randn(4, 1, 32, 20)
    network = check(Step(encoder), chunks[0], *state, states=[(i + 1, i + 1) for i in range(len(state))])
    ours = [x.numpy() for x in state]
    with torch.no_grad():
        for chunk in chunks:
            out, state = encoder.step(chunk, state)
            found, *ours = network(chunk, *ours)
            assert abs(found - out.numpy()).max() < 1e-4
            assert all(abs(one - other.numpy()).max() < 1e-4 for one, other in zip(ours, state, strict=True))
