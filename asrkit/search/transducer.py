"""Greedy and beam search of a transducer, batched over utterances and resumable chunk by chunk.

Both searches share one shape: `state = start(n)`, `advance(state, encoder_out, lens)` as often as audio comes, and
`hypotheses(state)` at any time. A whole utterance is one `advance`, a stream many; the result is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from asrkit.lm.scorer import Scorer
from asrkit.models.transducer import BLANK, Transducer

ACOUSTIC = "acoustic"
# A multiplier of a polynomial hash over 64-bit integers (odd, so it never loses a bit of the prefix).
HASH_MULTIPLIER = 6364136223846793005


@dataclass(frozen=True)
class Path:
    """One hypothesis in tokens: ids, the encoder frame of each, the weighted total, and each scorer's own sum."""

    tokens: list[int]
    frames: list[int]
    score: float
    scores: dict[str, float]


@dataclass
class GreedyState:
    frame: int
    predictor: list[Tensor]
    projected: Tensor  # (N, J)
    score: Tensor  # (N,)
    tokens: list[list[int]]
    frames: list[list[int]]


@dataclass
class GreedySearch:
    """The best symbol at each step; one label a frame at most, or `max_symbols` if the topology is regular."""

    model: Transducer
    max_symbols: int = 3

    @torch.inference_mode()
    def start(self, n: int) -> GreedyState:
        predictor = self.model.predictor.start(n)
        first = torch.full((n, 1), BLANK, device=self.model.device)
        out, predictor = self.model.predictor(first, predictor)
        projected = self.model.joiner.project_predictor(out[:, 0])
        return GreedyState(
            0,
            predictor,
            projected,
            torch.zeros(n, device=self.model.device),
            [[] for _ in range(n)],
            [[] for _ in range(n)],
        )

    @torch.inference_mode()
    def advance(self, state: GreedyState, encoder_out: Tensor, lens: Tensor) -> None:
        """Consume encoder_out (N, T, D), of which lens (N,) frames count."""
        model = self.model
        encoder = model.joiner.project_encoder(encoder_out)
        for t in range(int(lens.max())):
            active = t < lens.to(encoder.device)  # utterances that are still in this frame
            for symbol in range(1 if model.one_label_a_frame else self.max_symbols + 1):
                log_probs = model.joiner.combine(encoder[:, t], state.projected).float().log_softmax(dim=-1)
                best, token = log_probs.max(dim=-1)
                if symbol and symbol == self.max_symbols:  # no more labels here: the blank has to follow
                    best, token = log_probs[:, BLANK], torch.zeros_like(token)
                state.score += torch.where(active, best, 0.0)
                active = active & (token != BLANK)
                if not active.any():
                    break
                self._append(state, active.nonzero()[:, 0], token, state.frame + t)
        state.frame += int(lens.max())

    def _append(self, state: GreedyState, index: Tensor, token: Tensor, frame: int) -> None:
        for i, label in zip(index.tolist(), token[index].tolist(), strict=True):
            state.tokens[i].append(label)
            state.frames[i].append(frame)
        out, new = self.model.predictor(token[index, None], [s[index] for s in state.predictor])
        for old, s in zip(state.predictor, new, strict=True):
            old[index] = s
        state.projected[index] = self.model.joiner.project_predictor(out[:, 0])

    def hypotheses(self, state: GreedyState) -> list[list[Path]]:
        """Return one list an utterance, here with one path each."""
        rows = zip(state.tokens, state.frames, state.score.tolist(), strict=True)
        return [[Path(list(t), list(f), score, {ACOUSTIC: score})] for t, f, score in rows]


@dataclass
class Hypotheses:
    """K hypotheses of each of N utterances as tensors, all (N, K, …); unused ones have the acoustic score -inf."""

    acoustic: Tensor  # (N, K) log-probability, summed over merged alignments
    extra: Tensor  # (N, K, S) unweighted sum of each scorer
    hashes: Tensor  # (N, K) int64, equal if and (all but surely) only if the labels are equal
    lengths: Tensor  # (N, K) labels so far
    tokens: Tensor  # (N, K, L) labels, rows filled up to `lengths`
    frames: Tensor  # (N, K, L) emission frame of each label
    projected: Tensor  # (N, K, J) predictor output in joint space
    predictor: list[Tensor]  # state of the predictor
    scorers: list[list[Tensor]]  # state of each scorer

    def select(self, index: Tensor) -> "Hypotheses":
        """Return the hypotheses `index` (N, K') of each utterance."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        return _map(lambda x: x[rows, index], self)

    def joined(self, other: "Hypotheses") -> "Hypotheses":
        """Return the hypotheses of both, (N, K + K', …)."""
        self.grow(other.tokens.shape[2])
        other.grow(self.tokens.shape[2])
        return _map(lambda x, y: torch.cat([x, y], dim=1), self, other)

    def grow(self, labels: int) -> None:
        """Make room for so many labels, and for more in advance."""
        if (room := self.tokens.shape[2]) < labels:
            missing = max(labels, 2 * room) - room
            self.tokens, self.frames = (torch.nn.functional.pad(x, (0, missing)) for x in (self.tokens, self.frames))


def _map(function: Callable[..., Tensor], *all_hyps: Hypotheses) -> Hypotheses:
    """Apply `function` to each tensor of one or more Hypotheses."""

    def apply(values: list) -> Any:
        if isinstance(values[0], list):
            return [apply(list(items)) for items in zip(*values, strict=True)]
        return function(*values)

    return Hypotheses(**{f.name: apply([getattr(hyps, f.name) for hyps in all_hyps]) for f in fields(Hypotheses)})


@dataclass
class BeamState:
    frame: int
    hyps: Hypotheses


@dataclass
class BeamSearch:
    """Time-synchronous beam search in which equal label sequences are merged.

    At each frame a hypothesis goes on by the blank or by one label or, if the model's topology is regular, by up to
    `max_symbols` labels and then the blank: the lattice of the full-sum loss. Merging adds up the probabilities of all
    alignments of the same labels that the beam holds (the prefix search of 1211.3711, section 2.3, frame by frame).
    Extensions `max_drop` below the best hypothesis are dropped at once. `scorers` are (scorer, weight) pairs;
    a hypothesis is ranked by its acoustic log-probability plus the weighted sums, which are kept apart.
    """

    model: Transducer
    beam: int = 4
    scorers: Sequence[tuple[Scorer, float]] = field(default_factory=tuple)
    max_symbols: int = 3
    max_drop: float = 10.0

    @torch.inference_mode()
    def start(self, n: int) -> BeamState:
        device = self.model.device
        predictor = self.model.predictor.start(n)
        out, predictor = self.model.predictor(torch.full((n, 1), BLANK, device=device), predictor)
        labels = torch.zeros(n, 1, 8, dtype=torch.int64, device=device)
        hyps = Hypotheses(
            acoustic=torch.zeros(n, 1, device=device),
            extra=torch.zeros(n, 1, len(self.scorers), device=device),
            hashes=labels[..., 0],
            lengths=labels[..., 0],
            tokens=labels,
            frames=labels,
            projected=self.model.joiner.project_predictor(out),
            predictor=[s[:, None] for s in predictor],
            scorers=[[s[:, None] for s in scorer.start(n)] for scorer, _ in self.scorers],
        )
        return BeamState(0, hyps)

    @torch.inference_mode()
    def advance(self, state: BeamState, encoder_out: Tensor, lens: Tensor) -> None:
        """Consume encoder_out (N, T, D), of which lens (N,) frames count."""
        encoder = self.model.joiner.project_encoder(encoder_out)
        for t in range(int(lens.max())):
            state.hyps = self._frame(state.hyps, encoder[:, t], state.frame, t >= lens.to(encoder.device))
            state.frame += 1

    def _frame(self, waiting: Hypotheses, encoder: Tensor, frame: int, ended: Tensor) -> Hypotheses:
        """Take hypotheses through one frame, encoder (N, J); utterances that have `ended` (N,) stay as they are."""
        done = None
        for symbol in range(self.max_symbols + 1):
            log_probs = self.model.joiner.combine(encoder[:, None], waiting.projected).float().log_softmax(dim=-1)
            log_probs[ended] = -torch.inf
            log_probs[ended, :, BLANK] = 0.0
            leaving = replace(waiting, acoustic=waiting.acoustic + log_probs[..., BLANK])
            done = leaving if done is None else self._best(done.joined(leaving))
            if symbol == self.max_symbols:
                break
            floor = self._total(done).amax(dim=1, keepdim=True) - self.max_drop  # (N, 1)
            extended = self._extended(waiting, log_probs, floor, frame)
            if extended is None:
                break
            if self.model.one_label_a_frame:
                return self._best(done.joined(extended))
            waiting = extended
        return done

    def _extended(self, hyps: Hypotheses, log_probs: Tensor, floor: Tensor, frame: int) -> Hypotheses | None:
        """Return the best extensions of `hyps` by one label, or None if all are below `floor` (N, 1)."""
        vocab = log_probs.shape[-1]
        fused = self._fused(hyps, vocab)  # (N, K, V, S)
        acoustic = hyps.acoustic[..., None] + log_probs  # (N, K, V)
        total = acoustic + (hyps.extra[:, :, None] + fused) @ self._weights()
        total[..., BLANK] = -torch.inf
        best, index = total.flatten(1).topk(min(self.beam, total[0].numel()), dim=1)  # (N, K')
        alive = best > floor
        if not alive.any():
            return None
        parent, token = index // vocab, index % vocab
        gained = fused.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, fused.shape[-1]))  # (N, K', S)
        extended = hyps.select(parent)
        extended.acoustic = acoustic.flatten(1).gather(1, index).masked_fill(~alive, -torch.inf)
        extended.extra = extended.extra + gained
        return self._append(extended, alive, token, frame)

    def _append(self, hyps: Hypotheses, alive: Tensor, token: Tensor, frame: int) -> Hypotheses:
        """Append `token` (N, K) to those of `hyps` that are `alive` (N, K), in place."""
        hyps.grow(int(hyps.lengths.max()) + 1)
        row, column = alive.nonzero(as_tuple=True)
        label, end = token[row, column], hyps.lengths[row, column]
        hyps.tokens[row, column, end] = label
        hyps.frames[row, column, end] = frame
        hyps.lengths[row, column] += 1
        hyps.hashes[row, column] = hyps.hashes[row, column] * HASH_MULTIPLIER + label + 1

        out, predictor = self.model.predictor(label[:, None], [s[row, column] for s in hyps.predictor])
        hyps.projected[row, column] = self.model.joiner.project_predictor(out[:, 0])
        _write(hyps.predictor, row, column, predictor)
        for (scorer, _), states in zip(self.scorers, hyps.scorers, strict=True):
            _write(states, row, column, scorer.advance([s[row, column] for s in states], label))
        return hyps

    def _best(self, hyps: Hypotheses) -> Hypotheses:
        """Merge hypotheses with equal labels and return the best `beam` of each utterance."""
        used = hyps.acoustic > -torch.inf
        equal = (hyps.hashes[:, :, None] == hyps.hashes[:, None]) & (hyps.lengths[:, :, None] == hyps.lengths[:, None])
        equal &= used[:, :, None] & used[:, None]  # (N, K, K)
        merged = hyps.acoustic[:, None].masked_fill(~equal, -torch.inf).logsumexp(dim=2)  # (N, K)
        # Of equal ones the most probable stays, with its emission frames; of equally probable ones the first.
        order = torch.arange(equal.shape[1], device=equal.device)
        better = hyps.acoustic[:, None] > hyps.acoustic[:, :, None]
        better |= (hyps.acoustic[:, None] == hyps.acoustic[:, :, None]) & (order < order[:, None])
        merged = merged.masked_fill((equal & better).any(dim=2), -torch.inf)
        hyps = replace(hyps, acoustic=merged)
        return hyps.select(self._total(hyps).topk(min(self.beam, merged.shape[1]), dim=1).indices)

    def _weights(self) -> Tensor:
        return torch.tensor([weight for _, weight in self.scorers], device=self.model.device)

    def _total(self, hyps: Hypotheses) -> Tensor:
        """Return what hypotheses are ranked by, (N, K)."""
        return hyps.acoustic + hyps.extra @ self._weights()

    def _fused(self, hyps: Hypotheses, vocab: int) -> Tensor:
        """Return each scorer's log-probability of each next label, (N, K, V, S)."""
        n, k = hyps.acoustic.shape
        scores = [
            scorer.score([s.flatten(0, 1) for s in states]).view(n, k, vocab)
            for (scorer, _), states in zip(self.scorers, hyps.scorers, strict=True)
        ]
        return torch.stack(scores, dim=-1) if scores else hyps.acoustic.new_zeros(n, k, vocab, 0)

    def hypotheses(self, state: BeamState) -> list[list[Path]]:
        """Return the N-best list of each utterance, best first."""
        total = self._total(state.hyps)
        return [self._nbest(state.hyps, total, n) for n in range(len(total))]

    def _nbest(self, hyps: Hypotheses, total: Tensor, n: int) -> list[Path]:
        paths = []
        for k in total[n].argsort(descending=True).tolist():
            if total[n, k] == -torch.inf:
                break
            length = int(hyps.lengths[n, k])
            scores = {ACOUSTIC: float(hyps.acoustic[n, k])}
            scores.update({s.name: float(x) for (s, _), x in zip(self.scorers, hyps.extra[n, k], strict=True)})
            tokens, frames = hyps.tokens[n, k, :length].tolist(), hyps.frames[n, k, :length].tolist()
            paths.append(Path(tokens, frames, float(total[n, k]), scores))
        return paths


def _write(states: list[Tensor], row: Tensor, column: Tensor, values: list[Tensor]) -> None:
    """Put the states of some hypotheses back in their places."""
    for state, value in zip(states, values, strict=True):
        state[row, column] = value
