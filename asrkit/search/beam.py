"""Beam search of a transducer, batched over utterances and hypotheses, and resumable chunk by chunk.

Greedy and beam search share one shape: `state = start(n)`, `advance(state, encoder_out, lens)` as often as audio comes,
and `hypotheses(state)` at any time. A whole utterance is one `advance`, a stream many; the result is the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asrkit.lm.scorer import Scorer
from asrkit.models.transducer import BLANK, Transducer
from asrkit.search.extensions import Extensions, extend, merge
from asrkit.search.history import ACOUSTIC, History, Path
from asrkit.search.labels import Labels

INTERNAL_LM = "internal_lm"
BLOCK_ROWS = 16  # joiner rows of a block of frames, at least: below, a call costs more than what it computes


@dataclass
class Memory:
    """What follows from the labels of B hypotheses; it changes only when a label is appended."""

    projected: Tensor  # (B, J) predictor output in joint space
    scores: Tensor  # (B, S, V) each scorer's log-probability of each next label, 0 for the blank
    fused: Tensor  # (B, V) their weighted sum; (B, 0) if there are none
    predictor: list[Tensor]  # state of the predictor
    scorers: list[list[Tensor]]  # state of each scorer


@dataclass
class Hypotheses:
    """K hypotheses of each of N utterances, those of an utterance side by side: B = N * K.

    Their order means nothing: one keeps its place while it lives, so that its memory is never moved. Places that are
    not in use have the score -inf.
    """

    scores: Tensor  # (B, 2 + S) total, by which they are ranked; acoustic, summed over alignments; each scorer's sum
    ids: Tensor  # (B, 2) hash, equal if and (all but surely) only if the labels are equal; last node in the history
    memory: Memory


def _map(function: Callable[..., Any], record: Any, *others: Any) -> Any:
    """Apply `function` to each tensor of a record, whose fields may be lists, and to those at its place in `others`."""
    if isinstance(record, Tensor):
        return function(record, *others)
    if isinstance(record, list):
        return [_map(function, *items) for items in zip(record, *others, strict=True)]
    values = (_map(function, *(getattr(r, f.name) for r in (record, *others))) for f in fields(record))
    return type(record)(*values)


def _take(record: Any, index: Tensor | slice) -> Any:
    """Return the rows `index` of each tensor of a record."""
    return _map(lambda x: x[index], record)


def _put(record: Any, index: Tensor, values: Any) -> None:
    """Overwrite the rows `index` of each tensor of a record with those of `values`."""
    _map(lambda old, new: old.index_copy_(0, index, new), record, values)


@dataclass
class BeamState:
    frames: Tensor  # (N,) encoder frames consumed
    hyps: Hypotheses
    history: History


@dataclass
class BeamSearch:
    """Time-synchronous beam search in which equal label sequences are merged.

    At each frame a hypothesis goes on by the blank or by one label or, if the model's topology is regular, by up to
    `max_symbols` labels and then the blank: the lattice of the full-sum loss. Merging adds up the probabilities of all
    alignments of the same labels that the beam holds (the prefix search of 1211.3711, section 2.3, frame by frame).
    Extensions `max_drop` below the best hypothesis are dropped at once; so are those that another symbol has to follow
    in the same frame, if they are worse than the whole beam already. `scorers` are (scorer, weight) pairs; a hypothesis
    is ranked by its acoustic log-probability plus the weighted sums, which are kept apart. So is that of the model's
    internal language model, as "internal_lm", if its weight is not 0; a negative one takes it away (Meng et al.,
    "Internal Language Model Estimation for Domain-Adaptive End-to-End Speech Recognition", 2011.01991).
    With `keep_lattice` the state holds what `asrkit.search.lattice.lattices` needs.
    """

    model: Transducer
    beam: int = 4
    scorers: Sequence[tuple[Scorer, float]] = field(default_factory=tuple)
    internal_lm_weight: float = 0.0
    max_symbols: int = 3
    max_drop: float = 10.0
    length_norm: bool = False
    """Rank the final hypotheses by score per label: the total alone prefers those that leave words out."""
    merge_late: bool = False
    """Choose the best before equal ones are merged, as icefall and sherpa-onnx do. That leaves less than `beam` that
    differ, and finds a little less; it is for comparison with them."""
    keep_lattice: bool = False

    @property
    def names(self) -> list[str]:
        """The names of all scores but the total."""
        internal_lm = [INTERNAL_LM] if self.internal_lm_weight else []
        return [ACOUSTIC, *(scorer.name for scorer, _ in self.scorers), *internal_lm]

    @torch.inference_mode()
    def start(self, n: int) -> BeamState:
        """Return the state of `n` utterances before their first frame."""
        device = self.model.device
        predictor, scorers = self.model.predictor.start(1), [scorer.start(1) for scorer, _ in self.scorers]
        memory = self._memory(torch.full((1,), BLANK, device=device), predictor, scorers)
        scores = torch.zeros(n, self.beam, 2 + memory.scores.shape[1], device=device)
        scores[:, 1:, :2] = -torch.inf
        ids = torch.zeros(n * self.beam, 2, dtype=torch.int64, device=device)
        ids[:, 1] = torch.arange(n, device=device).repeat_interleave(self.beam)  # the roots of the history
        memory = _map(lambda x: x.expand(n * self.beam, *x.shape[1:]).clone(), memory)
        return BeamState(ids.new_zeros(n), Hypotheses(scores.flatten(0, 1), ids, memory), History(n, device))

    @torch.inference_mode()
    def advance(self, state: BeamState, encoder_out: Tensor, lens: Tensor, numbers: Tensor | None = None) -> None:
        """Consume encoder_out (N, T, D), of which lens (N,) frames count.

        Where frames have been left out, `numbers` (N, T) tells which ones these are, from the present one on.
        """
        encoder, lens = self.model.joiner.project_encoder(encoder_out), lens.to(encoder_out.device)
        if numbers is None:
            numbers = torch.arange(encoder.shape[1], device=encoder.device).expand(len(encoder), -1)
        frames = state.frames[:, None] + numbers  # (N, T)
        # On the CPU, what calls cost counts, and a GPU cannot take each utterance as far as it gets.
        in_blocks = encoder.device.type == "cpu" and self.model.config.topology == "modified" and not self.keep_lattice
        (self._in_blocks if in_blocks else self._frame_by_frame)(state, encoder, lens, frames)
        state.frames = state.frames + lens

    def _in_blocks(self, state: BeamState, encoder: Tensor, lens: Tensor, frames: Tensor) -> None:
        """Take each utterance through lens (N,) frames, encoder (N, T, J), on a clock of its own.

        In most frames hypotheses change in nothing but their scores. So they pass a block of frames at once, up to the
        one in which others take the place of some; what follows from the labels of these is found for all utterances
        together.
        """
        from asrkit.search.frames_numba import search_block  # numba takes a second to import

        hyps, history, joiner = state.hyps, state.history, self.model.joiner
        memory = hyps.memory
        ends, at, numbers = lens.numpy(), np.zeros(len(lens), np.int64), frames.numpy()
        rows = ends.nonzero()[0]  # (A,) utterances with frames left
        while len(rows):
            block = max(1, BLOCK_ROWS // (len(rows) * self.beam))
            times = np.minimum(at[rows, None] + np.arange(block), encoder.shape[1] - 1)  # (A, F)
            index = torch.from_numpy(rows[:, None] * encoder.shape[1] + times).flatten()
            window = encoder.flatten(0, 1).index_select(0, index).view(len(rows), block, 1, -1)  # (A, F, 1, J)
            projected = memory.projected.view(len(lens), 1, self.beam, -1).index_select(0, torch.from_numpy(rows))
            logits = joiner.combine(window, projected).float()  # (A, F, K, V)
            scores = memory.scores.float().numpy()
            fused = memory.fused.float().numpy() if scores.shape[1] else None
            history.reserve(len(rows) * block * self.beam)
            history.size, (freed, *born) = search_block(
                logits.numpy(), fused, joiner.factored_blank, self.max_drop, self.merge_late, rows, at, ends,
                numbers, hyps.scores.numpy(), hyps.ids.numpy(), scores, *history.arrays(), history.size,
            )  # fmt: skip
            if len(freed):
                _put(memory, torch.from_numpy(freed), self._grown(memory, *map(torch.from_numpy, born)))
            rows = rows[at[rows] < ends[rows]]

    def _frame_by_frame(self, state: BeamState, encoder: Tensor, lens: Tensor, frames: Tensor) -> None:
        """Take all utterances together through lens (N,) frames, encoder (N, T, J)."""
        # The longest first: then the utterances with frames left are always the first ones.
        lens, order = lens.cpu().sort(descending=True, stable=True)
        left = (lens > torch.arange(encoder.shape[1])[:, None]).sum(dim=1).tolist()  # utterances in each frame
        order = order.to(encoder.device)
        encoder, frames, hyps = encoder[order], frames[order], self._reordered(state.hyps, order)
        going_on = hyps
        for t, n in enumerate(left):
            if n == 0:
                break
            if n * self.beam < len(going_on.ids):
                going_on = _take(hyps, slice(n * self.beam))
            self._frame(going_on, encoder[:n, t], frames[:n, t], state.history)
        state.hyps = self._reordered(hyps, order.argsort())

    def _reordered(self, hyps: Hypotheses, order: Tensor) -> Hypotheses:
        """Return the hypotheses of the utterances `order` (N,)."""
        index = (order[:, None] * self.beam + torch.arange(self.beam, device=order.device)).flatten()
        return _take(hyps, index)

    def _frame(self, hyps: Hypotheses, encoder: Tensor, frames: Tensor, history: History) -> None:
        """Take hypotheses through one frame, encoder (N, J), whose numbers are `frames` (N,), in place."""
        topology, k = self.model.config.topology, self.beam
        waiting = replace(hyps, scores=hyps.scores.clone())  # those that may have a label in this frame
        places = torch.arange(hyps.ids.shape[0], device=encoder.device)  # theirs among N * K
        labels = self._labels(encoder, hyps.memory)
        hyps.scores[:, :2] += labels.blank[:, None]
        for _ in range(self.max_symbols if topology == "regular" else 1):
            floor = hyps.scores[:, 0].view(-1, k).amax(dim=1) - self.max_drop
            new = extend(waiting.scores, waiting.ids, places, labels, floor, k)
            if new is None:
                return
            if waiting.memory.scores.shape[1]:
                new.scores[:, 2:] += waiting.memory.scores[new.parents, :, new.tokens]
            alive = slice(None) if topology == "modified" else self._hopeful(hyps, new)  # (A,)
            noted = slice(None) if self.keep_lattice else alive
            now = frames[new.rows].repeat_interleave(k)
            new.ids[noted, 1] = history.append(new.ids[noted, 1], new.tokens[noted], now[noted], new.confidences[noted])
            if self.keep_lattice:
                history.scores.append(new.scores)
            if topology == "modified":
                freed, born = merge(hyps.scores, hyps.ids, new.rows, new.scores, new.ids, k, self.merge_late)
                if born.shape[0] == 0:
                    return
                memory = self._grown(waiting.memory, new.parents[born], new.tokens[born])
            else:  # the blank follows in the same frame
                if alive.shape[0] == 0:
                    return
                grown = self._grown(waiting.memory, new.parents[alive], new.tokens[alive])
                waiting = Hypotheses(new.scores[alive], new.ids[alive], grown)
                rows = new.rows[alive // k]
                places = rows * k + alive % k
                labels = self._labels(encoder[rows], grown)
                scores = torch.full_like(new.scores, -torch.inf)
                scores[alive] = waiting.scores
                scores[alive, :2] += labels.blank[:, None]
                freed, born = merge(hyps.scores, hyps.ids, new.rows, scores, new.ids, k, self.merge_late)
                memory = _take(grown, torch.searchsorted(alive, born))
            _put(hyps.memory, freed, memory)

    def _labels(self, encoder: Tensor, memory: Memory) -> Labels:
        """Return what may come next after B hypotheses, in frames encoder (N, J) of B / N hypotheses each."""
        joiner = self.model.joiner
        logits = joiner.combine(encoder[:, None], memory.projected.unflatten(0, (encoder.shape[0], -1))).flatten(0, 1)
        fused = memory.fused if memory.scores.shape[1] else None
        return Labels.best(logits, fused, joiner.factored_blank, self.beam)

    def _hopeful(self, hyps: Hypotheses, new: Extensions) -> Tensor:
        """Return which extensions (A,) can change the hypotheses: those that are good enough, or equal to one."""
        m, k = len(new.rows), self.beam
        scores, ids = hyps.scores[:, 0].view(-1, k)[new.rows], hyps.ids[:, 0].view(-1, k)[new.rows]  # (M, K)
        better = new.scores[:, 0].view(m, -1) > scores.amin(dim=1, keepdim=True)
        equal = (new.ids[:, 0].view(m, -1, 1) == ids[:, None]).any(dim=2)
        return ((better | equal).flatten() & (new.scores[:, 0] > -torch.inf)).nonzero()[:, 0]

    def _grown(self, memory: Memory, parents: Tensor, tokens: Tensor) -> Memory:
        """Return the memory of B hypotheses that add `tokens` (B,) to their `parents` (B,), which have `memory`."""
        predictor = [state[parents] for state in memory.predictor]
        scorers = [
            scorer.advance([state[parents] for state in states], tokens)
            for (scorer, _), states in zip(self.scorers, memory.scorers, strict=True)
        ]
        return self._memory(tokens, predictor, scorers)

    def _memory(self, tokens: Tensor, predictor: list[Tensor], scorers: list[list[Tensor]]) -> Memory:
        """Return the memory of B hypotheses from their last tokens, the predictor before them, the scorers after."""
        joiner = self.model.joiner
        out, predictor = self.model.predictor(tokens[:, None], predictor)
        projected = joiner.project_predictor(out[:, 0])
        scores = [scorer.score(state) for (scorer, _), state in zip(self.scorers, scorers, strict=True)]
        weights = [weight for _, weight in self.scorers]
        if self.internal_lm_weight:
            scores.append(joiner.internal_lm(projected))
            weights.append(self.internal_lm_weight)
        if not scores:
            vocab = joiner.output.out_features
            return Memory(projected, projected.new_zeros(len(tokens), 0, vocab), projected[:, :0], predictor, scorers)
        stacked = torch.stack(scores, dim=1)
        stacked[..., BLANK] = 0.0
        return Memory(projected, stacked, stacked.mT @ stacked.new_tensor(weights), predictor, scorers)

    def stack(self, states: Sequence[BeamState]) -> BeamState:
        """Return the states of several utterances as one, which shares nothing with them.

        Its labels come along, but not what `keep_lattice` has kept.
        """
        prefixes = [p for state in states for p in state.history.prefixes(state.hyps.ids[:, 1].tolist())]
        hyps = _map(lambda *parts: torch.cat(parts), *(state.hyps for state in states))
        hyps.ids[:, 1] = torch.arange(len(prefixes), device=hyps.ids.device)
        frames = torch.cat([state.frames for state in states])
        return BeamState(frames, hyps, History(len(prefixes), frames.device, prefixes))

    def unstack(self, state: BeamState) -> list[BeamState]:
        """Return the state of each utterance by itself."""
        places = torch.arange(len(state.hyps.ids), device=state.frames.device).split(self.beam)
        return [
            BeamState(frames.clone(), _take(state.hyps, index), state.history)
            for frames, index in zip(state.frames.split(1), places, strict=True)
        ]

    def last_labels(self, state: BeamState) -> list[int | None]:
        """Return the frame of the last label of each utterance's best hypothesis, None if there is none yet."""
        best = state.hyps.scores[:, 0].view(-1, self.beam).argmax(dim=1, keepdim=True)
        return state.history.last_frames(state.hyps.ids[:, 1].view(-1, self.beam).gather(1, best)[:, 0].tolist())

    @torch.inference_mode()
    def scores(self, state: BeamState, final: bool = True) -> Tensor:
        """Return the scores (N * K, 2 + S) of all hypotheses; if `final`, with those of the sentence's end."""
        scores = state.hyps.scores.clone()
        for i, ((scorer, weight), memory) in enumerate(zip(self.scorers, state.hyps.memory.scorers, strict=True)):
            if final:
                end = scorer.finish(memory)
                scores[:, 2 + i] += end
                scores[:, 0] += weight * end
        return scores

    @torch.inference_mode()
    def hypotheses(self, state: BeamState, final: bool = True) -> list[list[Path]]:
        """Return the N-best list of each utterance, best first, whether it has ended (`final`) or not."""
        names, rows = self.names, self.scores(state, final).tolist()
        labels = state.history.paths(state.hyps.ids[:, 1].tolist())
        paths = [
            Path(*path, total, dict(zip(names, scores, strict=True)))
            for path, (total, *scores) in zip(labels, rows, strict=True)
        ]
        nbest = (paths[first : first + self.beam] for first in range(0, len(paths), self.beam))
        return [sorted((p for p in some if p.score > -math.inf), key=self._rank) for some in nbest]

    def _rank(self, path: Path) -> float:
        # As in icefall and sherpa-onnx, the labels that stand for the start count.
        length = len(path.tokens) + self.model.config.predictor.context
        return -path.score / length if self.length_norm else -path.score
