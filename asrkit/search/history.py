"""What searches keep and return: the labels of hypotheses as a tree of back-pointers, and the paths read from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ACOUSTIC = "acoustic"


@dataclass(frozen=True)
class Path:
    """One hypothesis in tokens: ids, frame and confidence of each, the weighted total, and each scorer's own sum.

    The confidence is the token's probability among all labels in the encoder frame of its emission, as the search
    weighs them; where a search keeps none, the list is empty.
    """

    tokens: list[int]
    frames: list[int]
    confidences: list[float]
    score: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Prefix:
    """Labels, frame and confidence of each, before a root; those before them are shared with other prefixes."""

    before: "Prefix | None"
    tokens: list[int]
    frames: list[int]
    confidences: list[float]


class History:
    """The emitted labels of all hypotheses of N utterances as trees; nodes 0 to N - 1 are the roots, without labels.

    Hypotheses that begin alike share their nodes, so going on from one costs the same however long it is. A history can
    go on from nodes of others: its roots then stand for their labels, the `prefixes`.
    """

    def __init__(self, n: int, device: torch.device, prefixes: Sequence[Prefix | None] | None = None) -> None:
        self._nodes = torch.zeros(n + 64, 3, dtype=torch.int64, device=device)  # parent, token and frame of each
        self._confidences = torch.zeros(len(self._nodes), device=device)
        self._roots = self.size = n
        self._prefixes = [None] * n if prefixes is None else prefixes
        self.scores: list[Tensor] = []  # of the nodes after the roots, each (B, …), where a search keeps them

    def append(self, parents: Tensor, tokens: Tensor, frames: Tensor, confidences: Tensor) -> Tensor:
        """Add B nodes, given parents, tokens, frames and confidences (B,), and return their numbers (B,)."""
        self.reserve(parents.shape[0])
        start, self.size = self.size, self.size + parents.shape[0]
        torch.stack([parents, tokens, frames], dim=1, out=self._nodes[start : self.size])
        self._confidences[start : self.size] = confidences
        return torch.arange(start, self.size, device=parents.device)

    def reserve(self, n: int) -> None:
        """Make room for n nodes more."""
        while self.size + n > self._nodes.shape[0]:
            self._nodes = torch.cat([self._nodes, torch.zeros_like(self._nodes)])
            self._confidences = torch.cat([self._confidences, torch.zeros_like(self._confidences)])

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the memory of all nodes on a CPU, for compiled code: parent, token and frame (S, 3), confidence (S,).

        It is that from `size` on which is free, and whoever fills it has to add to `size`.
        """
        return self._nodes.numpy(), self._confidences.numpy()

    def nodes(self) -> list[list[int]]:
        """Return parent, token and frame of each node after the roots."""
        return self._nodes[self._roots : self.size].tolist()

    def prefixes(self, nodes: list[int]) -> list[Prefix | None]:
        """Return the labels up to each of `nodes`, for a history that goes on from there."""
        return [Prefix(root, *way) if way[0] else root for root, *way in self._ways(nodes)]

    def paths(self, nodes: list[int]) -> list[tuple[list[int], list[int], list[float]]]:
        """Return all tokens up to each of `nodes`, their frames and their confidences."""
        paths = []
        for prefix, *way in self._ways(nodes):
            parts = [way]
            while prefix is not None:
                parts.append([prefix.tokens, prefix.frames, prefix.confidences])
                prefix = prefix.before
            paths.append(tuple([x for part in reversed(parts) for x in part[side]] for side in range(3)))
        return paths

    def last_frames(self, nodes: list[int]) -> list[int | None]:
        """Return the frame of the last label up to each of `nodes`, None if there is none."""
        prefixes = [self._prefixes[node] if node < self._roots else None for node in nodes]
        frames = self._nodes[nodes, 2].tolist()
        return [
            frame if node >= self._roots else (prefix.frames[-1] if prefix else None)
            for node, frame, prefix in zip(nodes, frames, prefixes, strict=True)
        ]

    def _ways(self, nodes: list[int]) -> Iterator[tuple[Prefix | None, list[int], list[int], list[float]]]:
        """Yield for each of `nodes` the prefix of its root, and tokens, frames and confidences from there to it."""
        parents, tokens, frames = self._nodes[: self.size].T.tolist()
        confidences = self._confidences[: self.size].tolist()
        for node in nodes:
            way = []
            while node >= self._roots:
                way.append(node)
                node = parents[node]
            way.reverse()
            yield self._prefixes[node], *([values[i] for i in way] for values in (tokens, frames, confidences))
