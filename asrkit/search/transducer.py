"""Greedy and beam search of a transducer, batched over utterances and resumable chunk by chunk.

Both searches share one shape: `state = start(n)`, `advance(state, encoder_out, lens)` as often as audio comes, and
`hypotheses(state)` at any time. A whole utterance is one `advance`, a stream many; the result is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    """The best symbol at each step, up to `max_symbols` labels a frame."""

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
            active = t < lens  # utterances that have not yet emitted the blank of this frame
            for symbol in range(self.max_symbols + 1):
                log_probs = model.joiner.combine(encoder[:, t], state.projected).float().log_softmax(dim=-1)
                best, token = log_probs.max(dim=-1)
                if symbol == self.max_symbols:  # no more labels here: the blank has to follow
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
class BeamState:
    """All tensors have (N, K) in front: N utterances, K hypotheses each, unused ones at score -inf."""

    frame: int
    acoustic: Tensor  # (N, K) log-probability, summed over merged alignments
    extra: Tensor  # (N, K, S) unweighted sum of each scorer
    hashes: Tensor  # (N, K) int64, equal if and (all but surely) only if the labels are equal
    lengths: Tensor  # (N, K) labels so far
    tokens: Tensor  # (N, K, L) labels, rows filled up to `lengths`
    frames: Tensor  # (N, K, L) emission frame of each label
    predictor: list[Tensor]  # (N * K, …)
    projected: Tensor  # (N, K, J)
    scorers: list[list[Tensor]]  # for each scorer, (N * K, …)


@dataclass
class BeamSearch:
    """Time-synchronous beam search with at most one label a frame, in which equal label sequences are merged.

    Merging adds up the probabilities of all alignments of the same labels that the beam holds, as in the modified beam
    search of icefall and sherpa. `scorers` are (scorer, weight) pairs; a hypothesis is ranked by its acoustic
    log-probability plus the weighted sums, which are kept apart.
    """

    model: Transducer
    beam: int = 4
    scorers: Sequence[tuple[Scorer, float]] = field(default_factory=tuple)

    @torch.inference_mode()
    def start(self, n: int) -> BeamState:
        k, device = self.beam, self.model.device
        predictor = self.model.predictor.start(n * k)
        out, predictor = self.model.predictor(torch.full((n * k, 1), BLANK, device=device), predictor)
        acoustic = torch.full((n, k), -torch.inf, device=device)
        acoustic[:, 0] = 0.0
        empty = torch.zeros(n, k, 0, dtype=torch.int64, device=device)
        zeros = torch.zeros(n, k, dtype=torch.int64, device=device)
        return BeamState(
            frame=0,
            acoustic=acoustic,
            extra=torch.zeros(n, k, len(self.scorers), device=device),
            hashes=zeros,
            lengths=zeros.clone(),
            tokens=empty,
            frames=empty.clone(),
            predictor=predictor,
            projected=self.model.joiner.project_predictor(out[:, 0]).view(n, k, -1),
            scorers=[scorer.start(n * k) for scorer, _ in self.scorers],
        )

    @torch.inference_mode()
    def advance(self, state: BeamState, encoder_out: Tensor, lens: Tensor) -> None:
        """Consume encoder_out (N, T, D), of which lens (N,) frames count."""
        encoder = self.model.joiner.project_encoder(encoder_out)
        for t in range(int(lens.max())):
            self._frame(state, encoder[:, t], t < lens)
            state.frame += 1

    def _frame(self, state: BeamState, encoder: Tensor, active: Tensor) -> None:
        """Extend all hypotheses by one frame: encoder (N, J); utterances not `active` (N,) have ended."""
        n, k = state.acoustic.shape
        log_probs = (
            self.model.joiner.combine(encoder[:, None], state.projected).float().log_softmax(dim=-1)
        )  # (N, K, V)
        vocab = log_probs.shape[-1]
        stay = state.acoustic + torch.where(active[:, None], log_probs[..., BLANK], 0.0)  # (N, K)
        move = (state.acoustic[..., None] + log_probs).masked_fill(~active[:, None, None], -torch.inf)
        move[..., BLANK] = -torch.inf
        self._merge(state, stay, move)

        fused = self._fused(state, vocab)  # (N, K, V, S)
        weights = self._weights()
        past = state.extra @ weights  # (N, K)
        total_stay, total_move = stay + past, move + past[..., None] + fused @ weights

        candidates = torch.cat([total_stay[..., None], total_move], dim=-1).flatten(1)  # (N, K * (1 + V))
        best = candidates.topk(k, dim=1).indices  # (N, K)
        parent, choice = best // (vocab + 1), best % (vocab + 1)  # choice 0: blank; c > 0: label c - 1
        token = (choice - 1).clamp(min=0)
        moved = choice > 0

        flat = parent * vocab + token  # (N, K), index into hypotheses x labels
        acoustic = torch.where(moved, move.flatten(1).gather(1, flat), stay.gather(1, parent))
        gained = fused.flatten(1, 2).gather(1, flat[..., None].expand(-1, -1, fused.shape[-1]))  # (N, K, S)
        self._select(state, parent)
        state.acoustic = acoustic
        state.extra = state.extra + gained * moved[..., None]
        if moved.any():
            self._append(state, moved, token)

    def _weights(self) -> Tensor:
        return torch.tensor([weight for _, weight in self.scorers], device=self.model.device)

    def _fused(self, state: BeamState, vocab: int) -> Tensor:
        """Return each scorer's log-probability of each next label, (N, K, V, S)."""
        n, k = state.acoustic.shape
        scores = [scorer.score(x).view(n, k, vocab) for (scorer, _), x in zip(self.scorers, state.scorers, strict=True)]
        return torch.stack(scores, dim=-1) if scores else state.acoustic.new_zeros(n, k, vocab, 0)

    def _merge(self, state: BeamState, stay: Tensor, move: Tensor) -> None:
        """Let hypothesis i extended by j's last label join hypothesis j where that makes the labels of j.

        Hypotheses of one utterance differ, so this is the only way in which two candidates can be equal.
        """
        if state.tokens.shape[2] == 0:
            return
        n, k = stay.shape
        last = state.tokens.gather(2, (state.lengths - 1).clamp(min=0)[..., None]).squeeze(2)  # (N, K)
        extended = state.hashes[:, :, None] * HASH_MULTIPLIER + last[:, None, :] + 1  # (N, K from i, K to j)
        equal = (extended == state.hashes[:, None, :]) & (state.lengths > 0)[:, None, :]
        equal &= state.lengths[:, :, None] + 1 == state.lengths[:, None, :]
        equal &= (stay > -torch.inf)[:, None, :]  # an unused hypothesis may repeat the labels of a used one
        index = last[:, None, :].expand(n, k, k)
        joining = move.gather(2, index).masked_fill(~equal, -torch.inf)  # (N, i, j)
        torch.logaddexp(stay, joining.logsumexp(dim=1), out=stay)
        source = move.gather(2, index).masked_fill(equal, -torch.inf)
        # Two j may share a last label but not the i that they extend, so a column is written by its one equal pair.
        move.scatter_reduce_(2, index, source, "amin")

    def _select(self, state: BeamState, parent: Tensor) -> None:
        """Reorder everything that belongs to a hypothesis by `parent` (N, K)."""
        n, k = parent.shape
        if bool((parent == torch.arange(k, device=parent.device)).all()):
            return
        flat = (parent + torch.arange(n, device=parent.device)[:, None] * k).flatten()  # (N * K,)

        def pick(x: Tensor) -> Tensor:
            return x.flatten(0, 1)[flat].view(n, k, *x.shape[2:])

        state.extra, state.hashes, state.lengths = pick(state.extra), pick(state.hashes), pick(state.lengths)
        state.tokens, state.frames, state.projected = pick(state.tokens), pick(state.frames), pick(state.projected)
        state.predictor = [s[flat] for s in state.predictor]
        state.scorers = [[s[flat] for s in states] for states in state.scorers]

    def _append(self, state: BeamState, moved: Tensor, token: Tensor) -> None:
        """Append `token` (N, K) to the hypotheses that `moved` (N, K)."""
        if int(state.lengths.max()) == state.tokens.shape[2]:
            grown = (*state.tokens.shape[:2], max(8, state.tokens.shape[2]))
            state.tokens = torch.cat([state.tokens, state.tokens.new_zeros(grown)], dim=2)
            state.frames = torch.cat([state.frames, state.frames.new_zeros(grown)], dim=2)
        row, column = moved.nonzero(as_tuple=True)
        label, end = token[row, column], state.lengths[row, column]
        state.tokens[row, column, end] = label
        state.frames[row, column, end] = state.frame
        state.lengths[row, column] += 1
        state.hashes[row, column] = state.hashes[row, column] * HASH_MULTIPLIER + label + 1

        flat = row * moved.shape[1] + column
        out, new = self.model.predictor(label[:, None], [s[flat] for s in state.predictor])
        for old, s in zip(state.predictor, new, strict=True):
            old[flat] = s
        state.projected[row, column] = self.model.joiner.project_predictor(out[:, 0])
        for (scorer, _), states in zip(self.scorers, state.scorers, strict=True):
            for old, s in zip(states, scorer.advance([s[flat] for s in states], label), strict=True):
                old[flat] = s

    def hypotheses(self, state: BeamState) -> list[list[Path]]:
        """Return the N-best list of each utterance, best first."""
        total = state.acoustic + state.extra @ self._weights()
        return [self._nbest(state, total, n) for n in range(len(total))]

    def _nbest(self, state: BeamState, total: Tensor, n: int) -> list[Path]:
        paths = []
        for k in total[n].argsort(descending=True).tolist():
            if total[n, k] == -torch.inf:
                break
            length = int(state.lengths[n, k])
            scores = {ACOUSTIC: float(state.acoustic[n, k])}
            scores.update({s.name: float(x) for (s, _), x in zip(self.scorers, state.extra[n, k], strict=True)})
            tokens, frames = state.tokens[n, k, :length].tolist(), state.frames[n, k, :length].tolist()
            paths.append(Path(tokens, frames, float(total[n, k]), scores))
        return paths
