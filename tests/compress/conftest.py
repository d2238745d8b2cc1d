"""Fixtures of the tests of asrkit.compress."""

import numpy as np
import pytest
import torch
from torch import Tensor

from asrkit.compress.codegen import TARGETS, compile_network, load_network
from asrkit.compress.codegen.target import runs_here


@pytest.fixture
def target(request):
    """A target by its name; the test is skipped where its code cannot run."""
    if not runs_here(TARGETS[request.param]):
        pytest.skip(f"this processor does not run code for {request.param}")
    return TARGETS[request.param]


@pytest.fixture
def check(tmp_path):
    """A function that compiles a model, runs it, compares it with torch and returns it; as many times as wanted."""
    count = 0

    def run(model, *inputs, target=None, **options):
        nonlocal count
        count += 1
        folder = tmp_path / f"network-{count}"
        compile_network(model.eval(), inputs, folder, target, **options)
        network = load_network(folder)
        network._work.fill(0xFF)  # not a number, wherever the network reads what it has not written
        with torch.no_grad():
            wanted = model(*inputs)
        wanted = [wanted] if isinstance(wanted, Tensor) else wanted
        for i, (ours, torchs) in enumerate(zip(network(*inputs), wanted, strict=True)):
            torchs = torchs.float().numpy()
            assert ours.shape == torchs.shape and ours.dtype == np.float32
            np.testing.assert_allclose(ours, torchs, rtol=1e-4, atol=1e-4, err_msg=f"output {i}")
        return network

    return run
