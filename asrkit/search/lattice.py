"""Word-piece lattices of the beam search: what it kept, and what it gave up that has a twin among what it kept."""

import math
from dataclasses import dataclass
from heapq import nlargest
from itertools import groupby
from typing import Any

from asrkit.models.transducer import BLANK
from asrkit.search.beam import BeamSearch, BeamState
from asrkit.search.history import Path

Place = tuple[int, int, tuple[int, ...]]  # frame of a label, how many there are in that frame, the last labels
Scores = tuple[float, ...]  # total, then each by itself


@dataclass(frozen=True)
class Arc:
    """A label with its emission frame and what it adds to each score: the total first, then as `Lattice.names`."""

    start: int
    end: int
    token: int
    frame: int
    scores: Scores


@dataclass(frozen=True)
class Lattice:
    """Arcs from node 0, the start, to node `nodes` - 1, the end; each goes to a node of a higher number.

    They are sorted. Those into the end have the blank as token and the number of frames as frame.
    """

    nodes: int
    arcs: tuple[Arc, ...]
    names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what a line of a JSON file of lattices holds."""
        arcs = [
            {"start": a.start, "end": a.end, "token": a.token, "frame": a.frame, "score": a.scores[0]}
            | {"scores": dict(zip(self.names, a.scores[1:], strict=True))}
            for a in self.arcs
        ]
        return {"nodes": self.nodes, "arcs": arcs}


def lattices(search: BeamSearch, state: BeamState, context: int = 2) -> list[Lattice]:
    """Return the lattice of each of N utterances, searched with `keep_lattice`.

    Hypotheses that emit a label in the same frame and agree in their last `context` labels share a node there, and so
    what follows (Prabhavalkar et al., "Less is More: Improved RNN-T Decoding Using Limited Label Context and Path
    Merging", 2012.06749). With a stateless predictor of that context, and scorers that see no more, the scores of all
    paths are those that the search would have given them but for merging; otherwise they are estimates. The hypotheses
    of the search are all paths.

    Raises:
        ValueError: the search has not kept what it takes.
    """
    if not search.keep_lattice:
        raise ValueError("a lattice needs a search with keep_lattice=True")
    n = len(state.frames)
    gains: list[dict[tuple[Place, Place], Scores]] = [{} for _ in range(n)]  # of each utterance

    def connect(utterance: int, start: Place, end: Place, gain: Scores) -> None:
        gains[utterance][start, end] = max(gain, gains[utterance].get((start, end), gain))

    utterances, places = list(range(n)), [(-1, 0, ())] * n  # of the nodes of the history, which begins with the roots
    zero = (0.0,) * (1 + len(search.names))
    scores = [zero] * n + [tuple(row) for part in state.history.scores for row in part.tolist()]
    for node, (parent, token, frame) in enumerate(state.history.nodes(), start=n):
        utterance, (last, emitted, labels) = utterances[parent], places[parent]
        utterances.append(utterance)
        places.append((frame, emitted + 1 if frame == last else 1, (*labels, token)[-context:]))
        if scores[node][0] > -math.inf:  # not dropped
            connect(utterance, places[parent], places[node], _difference(scores[node], scores[parent]))
    frames = state.frames.tolist()
    for node, score in zip(state.hyps.ids[:, 1].tolist(), search.scores(state).tolist(), strict=True):
        if score[0] > -math.inf:
            utterance = utterances[node]
            connect(utterance, places[node], (frames[utterance], 0, ()), _difference(tuple(score), scores[node]))
    return [_lattice(some, search.names) for some in gains]


def _difference(scores: Scores, others: Scores) -> Scores:
    return tuple(a - b for a, b in zip(scores, others, strict=True))


def _lattice(gains: dict[tuple[Place, Place], Scores], names: list[str]) -> Lattice:
    """Return the lattice of the places from which the end, the last of all, can be reached."""
    leading = {max(end for _, end in gains)}
    for start, end in sorted(gains, reverse=True):  # so the arcs from `end` have had their turn
        if end in leading:
            leading.add(start)
    numbers = {place: number for number, place in enumerate(sorted(leading))}
    arcs = [
        Arc(numbers[start], numbers[end], end[2][-1] if end[2] else BLANK, end[0], gain)
        for (start, end), gain in sorted(gains.items())
        if end in leading
    ]
    return Lattice(len(numbers), tuple(arcs), tuple(names))


def lattice_nbest(lattice: Lattice, n: int) -> list[Path]:
    """Return the n best paths with different labels, best first; of equal labels the best alignment counts."""
    # Labels -> scores and frames at each node. What is not among the n best of a node can not be at the end, where n
    # others with the same continuation come before it.
    best: list[dict[tuple[int, ...], tuple[Scores, tuple[int, ...]]]] = [{} for _ in range(lattice.nodes)]
    best[0][()] = (0.0,) * (1 + len(lattice.names)), ()
    for start, leaving in groupby(lattice.arcs, key=lambda arc: arc.start):  # all arcs into `start` come before
        top = _top(best[start], n)
        for arc in leaving:
            label, frame = ((), ()) if arc.token == BLANK else ((arc.token,), (arc.frame,))
            for labels, (scores, frames) in top:
                scores = tuple(a + b for a, b in zip(scores, arc.scores, strict=True))
                known = best[arc.end].get(labels + label)
                if known is None or scores > known[0]:
                    best[arc.end][labels + label] = scores, frames + frame
    return [
        Path(list(labels), list(frames), [], scores[0], dict(zip(lattice.names, scores[1:], strict=True)))
        for labels, (scores, frames) in _top(best[-1], n)
    ]


def _top(some: dict[tuple[int, ...], tuple[Scores, tuple[int, ...]]], n: int) -> list[tuple]:
    return nlargest(n, some.items(), key=lambda item: item[1][0])
