"""Greedy search of a transducer, batched, label by label, and resumable chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrkit.models.transducer import BLANK, Transducer
from asrkit.search.confidence import among_labels
from asrkit.search.history import ACOUSTIC, History, Path

BLOCK_ROWS = 16  # joiner rows of a block of frames, at least: below, a call costs more than what it computes
BLOCK_FRAMES = 4  # frames of a block, at least: about those between two labels


@dataclass
class GreedyState:
    frames: Tensor  # (N,) encoder frames consumed
    score: Tensor  # (N,)
    nodes: Tensor  # (N,) last label in `history`
    projected: Tensor  # (N, J) predictor output in joint space
    predictor: list[Tensor]  # state of the predictor
    history: History


@dataclass
class GreedySearch:
    """The best symbol at each step; one label a frame at most, or `max_symbols` if the topology is regular.

    The loop goes over labels, not frames: each utterance, on a clock of its own, looks for its next label in blocks of
    frames under its present predictor output (Bataev et al., "Label-Looping: Highly Efficient Decoding for
    Transducers", 2406.06220).
    """

    model: Transducer
    max_symbols: int = 3

    @torch.inference_mode()
    def start(self, n: int) -> GreedyState:
        """Return the state of `n` utterances before their first frame."""
        model, device = self.model, self.model.device
        out, predictor = model.predictor(torch.full((1, 1), BLANK, device=device), model.predictor.start(1))
        projected = model.joiner.project_predictor(out[:, 0])
        projected, *predictor = (x.expand(n, *x.shape[1:]).clone() for x in (projected, *predictor))
        frames, score = torch.zeros(n, dtype=torch.int64, device=device), torch.zeros(n, device=device)
        return GreedyState(frames, score, torch.arange(n, device=device), projected, predictor, History(n, device))

    @torch.inference_mode()
    def advance(self, state: GreedyState, encoder_out: Tensor, lens: Tensor, numbers: Tensor | None = None) -> None:
        """Consume encoder_out (N, T, D), of which lens (N,) frames count.

        Where frames have been left out, `numbers` (N, T) tells which ones these are, from the present one on.
        """
        model, topology, lens = self.model, self.model.config.topology, lens.to(encoder_out.device)
        encoder = model.joiner.project_encoder(encoder_out)
        most = self.max_symbols if topology == "regular" else 1
        rows = lens.nonzero()[:, 0]  # (B,) utterances with frames left
        ends, frame, emitted = lens[rows], torch.zeros_like(rows), torch.zeros_like(rows)  # labels in this frame
        while len(rows):
            block = torch.arange(max(BLOCK_FRAMES, BLOCK_ROWS // len(rows)), device=rows.device)
            frames = frame[:, None] + block  # (B, F)
            inside = frames < ends[:, None]
            window = encoder[rows[:, None], frames.clamp(max=encoder.shape[1] - 1)]  # (B, F, J)
            log_probs = model.joiner.log_probs(window, state.projected[rows, None])
            blank = log_probs[..., BLANK]
            is_label = (log_probs[..., BLANK + 1 :].amax(dim=-1) > blank) & inside
            if topology != "modified":  # after so many labels the blank has to follow
                is_label[:, 0] &= emitted < most
            found, first = is_label.max(dim=1)  # (B,), the first of equal ones
            passed = inside & (block < torch.where(found, first, len(block))[:, None])
            state.score[rows] += (blank * passed).sum(dim=1)
            frame = frame + passed.sum(dim=1)
            hit = found.nonzero()[:, 0]
            score, token = log_probs[hit, first[hit], BLANK + 1 :].max(dim=-1)
            state.score[rows[hit]] += score
            confidence = among_labels(score, blank[hit, first[hit]])
            at = frame[hit] if numbers is None else numbers[rows[hit], frame[hit]]
            self._append(state, rows[hit], token + BLANK + 1, at, confidence)
            if topology == "modified":
                frame = frame + found
            else:
                emitted = torch.where(found, torch.where(first == 0, emitted, 0) + 1, 0)
            left = frame < ends
            if not left.all():
                rows, ends, frame, emitted = (x[left] for x in (rows, ends, frame, emitted))
        state.frames += lens

    def _append(self, state: GreedyState, rows: Tensor, tokens: Tensor, frames: Tensor, confidences: Tensor) -> None:
        """Append tokens (B,) with confidences (B,) at frames (B,) of this call to the utterances `rows` (B,)."""
        if len(rows) == 0:
            return
        state.nodes[rows] = state.history.append(state.nodes[rows], tokens, state.frames[rows] + frames, confidences)
        out, predictor = self.model.predictor(tokens[:, None], [s[rows] for s in state.predictor])
        state.projected[rows] = self.model.joiner.project_predictor(out[:, 0])
        for old, new in zip(state.predictor, predictor, strict=True):
            old[rows] = new

    def stack(self, states: Sequence[GreedyState]) -> GreedyState:
        """Return the states of several utterances as one, which shares nothing with them."""
        prefixes = [prefix for state in states for prefix in state.history.prefixes(state.nodes.tolist())]
        frames, score, projected = (
            torch.cat([getattr(s, name) for s in states]) for name in ("frames", "score", "projected")
        )
        predictor = [torch.cat(parts) for parts in zip(*(state.predictor for state in states), strict=True)]
        nodes, history = torch.arange(len(frames), device=frames.device), History(len(frames), frames.device, prefixes)
        return GreedyState(frames, score, nodes, projected, predictor, history)

    def unstack(self, state: GreedyState) -> list[GreedyState]:
        """Return the state of each utterance by itself."""
        parts = zip(*(x.split(1) for x in (state.frames, state.score, state.nodes, state.projected)), strict=True)
        predictors = zip(*(x.split(1) for x in state.predictor), strict=True)
        return [
            GreedyState(*(x.clone() for x in part), [x.clone() for x in predictor], state.history)
            for part, predictor in zip(parts, predictors, strict=True)
        ]

    def last_labels(self, state: GreedyState) -> list[int | None]:
        """Return the frame of the last label of each utterance, None if there is none yet."""
        return state.history.last_frames(state.nodes.tolist())

    def hypotheses(self, state: GreedyState, final: bool = True) -> list[list[Path]]:
        """Return one list an utterance, here with one path each, whether it has ended (`final`) or not."""
        paths = state.history.paths(state.nodes.tolist())
        return [
            [Path(*path, score, {ACOUSTIC: score})] for path, score in zip(paths, state.score.tolist(), strict=True)
        ]
