"""Every engine of the lattice against the reference; the reference meets enumeration in test_transducer.py."""

import os

import pytest
import torch

from asrkit.errors import InputError
from asrkit.losses.lattice import LOG_ZERO, lattice, occupations

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

ENGINES = ["numba", "triton", "k2"]


def random_case(n: int, frames: int, labels: int, dtype: torch.dtype):
    torch.manual_seed(frames)
    log_probs = torch.randn(n, frames, labels + 1, 6, dtype=dtype).log_softmax(dim=-1)
    frame_lens = torch.randint(1, frames + 1, (n,))
    label_lens = torch.randint(0, labels + 1, (n,))
    frame_lens[0], label_lens[0] = frames, labels
    return log_probs[..., 0], log_probs[:, :, :-1, 1], frame_lens, label_lens


def solve(backend: str, *case, modified: bool):
    """Run an engine where it runs, or skip."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    try:
        results = lattice(*(x.to(device) for x in case), modified=modified, backend=backend)
    except InputError as error:
        pytest.skip(str(error))
    return [x.cpu() for x in results]


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("shape", [(5, 7, 4), (3, 1, 0), (2, 30, 17), (2, 5, 0), (1, 1, 1), (3, 4, 9)], ids=str)
@pytest.mark.parametrize("backend", ENGINES)
def test_engine_equals_the_reference(backend, shape, modified):
    case = random_case(*shape, torch.float32 if backend == "k2" else torch.float64)
    if modified and backend == "k2":  # k2 has no answer for more labels than frames
        case = *case[:3], torch.minimum(case[3], case[2])
    results = solve(backend, *case, modified=modified)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if backend == "k2" else {"atol": 1e-8, "rtol": 1e-8}
    for ours, expected in zip(results, lattice(*case, modified=modified, backend="torch"), strict=True):
        torch.testing.assert_close(ours, expected, **tolerance)


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_impossible_arcs_and_no_numbers(backend, modified):
    blank, label, *_ = random_case(4, 9, 4, torch.float64)
    case = blank, label, torch.tensor([9, 7, 8, 6]), torch.tensor([4, 2, 3, 0])
    blank[0, 2, :3], label[0, 3, 1], label[0, 4] = -torch.inf, -torch.inf, LOG_ZERO
    blank[1, 0, 0], label[1, 0, 0] = -torch.inf, -torch.inf  # nowhere to go
    blank[2, 0, 0] = torch.nan
    results, expected = solve(backend, *case, modified=modified), lattice(*case, modified=modified, backend="torch")
    for ours, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-8, rtol=1e-8, equal_nan=True)
    total, *both = results
    assert total[0].isfinite() and total[1] == -torch.inf and total[2].isnan() and total[3].isfinite()
    assert all((x[1:3] == 0).all() and x.isfinite().all() for x in both)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("topology", ["regular", "modified", "constrained"])
def test_every_label_is_emitted_once_in_a_long_utterance(topology, backend):
    blank, label, *lens = random_case(2, 700, 60, torch.float32)
    _, blank_occupation, label_occupation = occupations(10 * blank, 10 * label, *lens, topology, backend=backend)
    emitted = torch.arange(60) < lens[1][:, None]
    torch.testing.assert_close(label_occupation.sum(dim=1), emitted.float(), atol=1e-5, rtol=0)
    through = torch.arange(700) < lens[0][:, None]  # a frame is left once: by a blank, or by its one label
    leaving = blank_occupation.sum(dim=2) + (label_occupation.sum(dim=2) if topology == "modified" else 0)
    torch.testing.assert_close(leaving, through.float(), atol=1e-5, rtol=0)


def test_delay_penalty_makes_labels_early():
    blank, label, *lens = random_case(1, 20, 3, torch.float32)
    frames = torch.arange(20.0)[:, None]

    def mean_frame(delay_penalty: float) -> torch.Tensor:
        return (frames * occupations(blank, label, *lens, "modified", delay_penalty)[2][0]).sum(dim=0)

    assert (mean_frame(0.5) < mean_frame(0.0)).all() and (mean_frame(0.0) < mean_frame(-0.5)).all()


@pytest.mark.parametrize("backend", ["warp", "numba", "triton"])
def test_backends_that_cannot_run_are_named(backend, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    blank, label, *lens = random_case(1, 3, 2, torch.float32)
    device = "meta" if backend == "numba" else "cpu"
    with pytest.raises(InputError, match=f'"{backend}" on {device}'):
        lattice(blank.to(device), label.to(device), *lens, backend=backend)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "k2", None)
    with pytest.raises(InputError, match="k2.*install_peers.sh"):
        lattice(*random_case(1, 3, 2, torch.float32), backend="k2")
