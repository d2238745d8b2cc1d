"""What searches keep and return: the labels of hypotheses as a tree of back-pointers, and the paths read from it."""

from dataclasses import dataclass

import torch
from torch import Tensor

ACOUSTIC = "acoustic"


@dataclass(frozen=True)
class Path:
    """One hypothesis in tokens: ids, the encoder frame of each, the weighted total, and each scorer's own sum."""

    tokens: list[int]
    frames: list[int]
    score: float
    scores: dict[str, float]


class History:
    """The emitted labels of all hypotheses of N utterances as trees; nodes 0 to N - 1 are the roots, without labels.

    Hypotheses that begin alike share their nodes, so going on from one costs the same however long it is.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self._nodes = torch.zeros(n + 64, 3, dtype=torch.int64, device=device)  # parent, token and frame of each
        self._roots = self._size = n
        self.scores: list[Tensor] = []  # of the nodes after the roots, each (B, …), where a search keeps them

    def append(self, parents: Tensor, tokens: Tensor, frames: Tensor) -> Tensor:
        """Add B nodes, given parents, tokens and frames (B,), and return their numbers (B,)."""
        start, self._size = self._size, self._size + len(parents)
        while self._size > len(self._nodes):
            self._nodes = torch.cat([self._nodes, torch.zeros_like(self._nodes)])
        torch.stack([parents, tokens, frames], dim=1, out=self._nodes[start : self._size])
        return torch.arange(start, self._size, device=parents.device)

    def nodes(self) -> list[list[int]]:
        """Return parent, token and frame of each node after the roots."""
        return self._nodes[self._roots : self._size].tolist()

    def paths(self, nodes: list[int]) -> list[tuple[list[int], list[int]]]:
        """Return the tokens and the frames from the root to each of `nodes`."""
        parents, tokens, frames = self._nodes[: self._size].T.tolist()
        paths = []
        for node in nodes:
            way = []
            while node >= self._roots:
                way.append(node)
                node = parents[node]
            way.reverse()
            paths.append(([tokens[i] for i in way], [frames[i] for i in way]))
        return paths
