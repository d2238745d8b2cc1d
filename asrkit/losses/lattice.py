"""The sum over all paths of a transducer lattice, with the posterior probability of every arc.

At every node (t, u) a blank moves to (t + 1, u). Label u + 1 moves on by the topology:

- "regular": to (t, u + 1), so a frame has any number of labels (Graves, "Sequence Transduction with Recurrent Neural
  Networks", 1211.3711); a path ends by the blank of the last frame, at (T, U);
- "modified": to (t + 1, u + 1), so a frame has one label or a blank (Tripathi et al., "Monotonic Recurrent Neural
  Network Transducer and Decoding Strategies", 2019);
- "constrained": to (t, u + 1), where the blank must follow at once: the modified lattice with other scores.

The engines compute the same: "torch" is the reference and runs on any device, "numba" is for the CPU, "triton" for
CUDA, and "k2" takes k2's recursion where k2 is installed.
"""

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from asrkit.errors import InputError

Topology = Literal["regular", "modified", "constrained"]
Backend = Literal["auto", "torch", "numba", "triton", "k2"]

# Probability zero. Finite, because the difference of two infinities is no number.
LOG_ZERO = -1e30


def occupations(
    blank: Tensor,
    label: Tensor,
    frame_lens: Tensor,
    label_lens: Tensor,
    topology: Topology = "regular",
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over all paths of a topology, and the derivative of that sum by every score.

    Args:
        blank: (N, T, U + 1) log-probability of the blank at each node.
        label: (N, T, U) log-probability of the next label at each node.
        frame_lens: (N,) frames, each 1 … T.
        label_lens: (N,) labels, each 0 … U.
        topology: see the module.
        delay_penalty: late labels lose and early ones gain this much a frame, counted from the middle of the utterance
            (Kang et al., "Delay-penalized transducer for low-latency streaming ASR", 2211.00490, eq. 9).
        backend: the engine of `lattice`.

    Returns:
        As `lattice`. At a node of the constrained topology the blank counts both as a step of its own and as the one
        that follows a label.
    """
    if topology not in get_args(Topology):
        raise ValueError(f"topology {topology!r} is none of {', '.join(get_args(Topology))}")
    if delay_penalty:
        middle = (frame_lens.to(label) - 1) / 2
        earliness = middle[:, None] - torch.arange(label.shape[1], device=label.device)  # (N, T)
        label = label + delay_penalty * earliness[:, :, None]
    if topology == "constrained":
        label = label + blank[:, :, 1:]
    total, blank_occupation, label_occupation = lattice(
        blank, label, frame_lens, label_lens, topology != "regular", backend
    )
    if topology == "constrained":
        blank_occupation[:, :, 1:] += label_occupation
    return total, blank_occupation, label_occupation


def lattice(
    blank: Tensor,
    label: Tensor,
    frame_lens: Tensor,
    label_lens: Tensor,
    modified: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over all paths of the transducer lattice, in float64 whatever the engine (k2's: in the type of the scores).

    Args:
        blank: (N, T, U + 1) log-probability of the blank at each node.
        label: (N, T, U) log-probability of the next label at each node.
        frame_lens, label_lens: (N,).
        modified: labels take a frame, as blanks do.
        backend: the engine; "auto" is numba on the CPU, triton on CUDA where it imports, otherwise torch.

    Returns:
        total (N,), and the posterior probability that a path leaves each node by its blank (N, T, U + 1) and by
        its label (N, T, U), zero outside the utterance; float64 for float64 scores, otherwise float32. The total of an
        utterance without a path is -inf, of one with a score that is no number NaN, and the posteriors of both are 0.

    Raises:
        InputError: the backend is unknown, or it cannot run here.
    """
    dtype = torch.promote_types(blank.dtype, torch.float32)
    blank, label = blank.detach().to(dtype).contiguous(), label.detach().to(dtype).contiguous()
    frame_lens, label_lens = (x.to(blank.device, torch.int64).contiguous() for x in (frame_lens, label_lens))
    return _engine(backend, blank.device)(blank, label, frame_lens, label_lens, modified)


def _engine(backend: str, device: torch.device) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    if backend == "auto":
        backend = "numba" if device.type == "cpu" else "triton" if device.type == "cuda" and _has_triton() else "torch"
    if backend == "torch":
        return _torch_lattice
    if backend == "numba" and device.type == "cpu":
        from asrkit.losses.lattice_numba import lattice as numba_lattice  # numba takes a second to import

        return numba_lattice
    if backend == "triton" and (device.type == "cuda" or "TRITON_INTERPRET" in os.environ):
        need(backend, "pip install triton")
        return importlib.import_module("asrkit.losses.lattice_triton").lattice
    if backend == "k2":
        return functools.partial(_k2_lattice, need(backend, "bash tools/bench/install_peers.sh FOLDER"))
    raise InputError(f'no transducer lattice "{backend}" on {device.type}: give auto, torch, numba, triton or k2')


@functools.cache
def _has_triton() -> bool:
    try:
        importlib.import_module("triton")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def need(package: str, install: str) -> ModuleType:
    """Import an optional package, or raise InputError with the command that installs it."""
    try:
        return importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(f'backend "{package}" cannot run ({error}): {install}') from error


def _torch_lattice(
    blank: Tensor, label: Tensor, frame_lens: Tensor, label_lens: Tensor, modified: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference: one step per row of nodes that a path visits at the same time.

    Such a row is a frame of the modified lattice, and a diagonal t + u = const of the regular one. In rows, both are
    the same recursion: a blank goes to (row + 1, u), a label to (row + 1, u + 1).
    """
    n, frames, columns = blank.shape
    rows = frames if modified else frames + columns - 1
    u = torch.arange(columns, device=blank.device)
    t = torch.arange(rows, device=blank.device)[:, None] - (0 if modified else u)  # (rows, U + 1)
    inside = (t >= 0) & (t < frame_lens[:, None, None]) & (u <= label_lens[:, None, None])  # (N, rows, U + 1)
    index = t.clamp(0, frames - 1).expand(n, rows, columns)
    # A label that leaves the last column of its utterance leads outside, from where no path comes back.
    label = torch.nn.functional.pad(label, (0, 1), value=LOG_ZERO)

    def in_rows(x: Tensor) -> Tensor:
        return x.double().clamp(min=LOG_ZERO).gather(1, index).masked_fill(~inside, LOG_ZERO)

    blank_rows, label_rows = in_rows(blank), in_rows(label)  # (N, rows, U + 1)
    row_lens = frame_lens if modified else frame_lens + label_lens
    nowhere = blank_rows.new_full((n, 1), LOG_ZERO)

    alpha = [torch.where(u == 0, 0.0, LOG_ZERO).expand(n, columns).double()]
    for d in range(rows - 1):
        stay, move = alpha[-1] + blank_rows[:, d], alpha[-1] + label_rows[:, d]
        alpha.append(torch.logaddexp(stay, torch.cat([nowhere, move[:, :-1]], dim=1)))

    end = torch.where(u == label_lens[:, None], 0.0, LOG_ZERO).double()  # (N, U + 1)
    beta = [torch.full_like(end, LOG_ZERO)]
    for d in range(rows - 1, -1, -1):
        after = torch.where((row_lens == d + 1)[:, None], end, beta[-1])
        stay, move = after + blank_rows[:, d], torch.cat([after[:, 1:], nowhere], dim=1) + label_rows[:, d]
        beta.append(torch.logaddexp(stay, move))
        alpha[d] = (alpha[d] + stay, alpha[d] + move)

    total = beta[-1][:, 0]
    possible = total > LOG_ZERO / 2  # and a number
    back = (u[None] if not modified else torch.zeros_like(u[None])) + torch.arange(frames, device=u.device)[:, None]

    def posterior(rows_of_scores: list[Tensor]) -> Tensor:
        score = torch.stack(rows_of_scores, dim=1).gather(1, back.expand(n, frames, columns))  # (N, T, U + 1)
        probability = (score - total[:, None, None]).exp()
        return probability.masked_fill(~possible[:, None, None], 0.0).to(blank.dtype)

    blank_occupation, label_occupation = (posterior(list(x)) for x in zip(*alpha, strict=True))
    total = torch.where(total < LOG_ZERO / 2, -torch.inf, total)
    return total.to(blank.dtype), blank_occupation, label_occupation[:, :, :-1]


def _k2_lattice(
    k2: ModuleType, blank: Tensor, label: Tensor, frame_lens: Tensor, label_lens: Tensor, modified: bool
) -> tuple[Tensor, Tensor, Tensor]:
    after = torch.arange(label.shape[1], device=label.device) >= frame_lens[:, None]  # (N, T)
    px = label.masked_fill(after[:, :, None], LOG_ZERO).transpose(1, 2)  # (N, U, T)
    if not modified:  # there, k2 has labels after the last frame as well
        px = torch.nn.functional.pad(px, (0, 1), value=LOG_ZERO)
    start = torch.zeros_like(frame_lens)
    boundary = torch.stack([start, start, label_lens, frame_lens], dim=1)
    total, (label_occupation, blank_occupation) = k2.mutual_information_recursion(
        px.contiguous(), blank.transpose(1, 2).contiguous(), boundary, return_grad=True
    )
    possible = (total > LOG_ZERO / 2)[:, None, None]
    blank_occupation, label_occupation = (
        x[..., : blank.shape[1]].transpose(1, 2).masked_fill(~possible, 0.0).contiguous()
        for x in (blank_occupation, label_occupation)
    )
    return torch.where(total < LOG_ZERO / 2, -torch.inf, total), blank_occupation, label_occupation
