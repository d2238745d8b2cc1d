"""Hypotheses and one label more: the best extensions of a beam, and the beam that they leave behind.

Here in plain torch, for any device; `asrkit.search.extensions_numba` does the same on the CPU, where dozens of small
torch operations a frame would take several times as long as what they compute.

B hypotheses are those of N utterances, at most K of each, side by side. Their `scores` (B, 2 + S) are the total by
which they are ranked, the acoustic one and each scorer's; their `ids` (B, 2) a hash of the labels, and the last node in
the history.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from asrkit.search.labels import Labels

# A multiplier of a polynomial hash over 64-bit integers (odd, so it never loses a bit of the prefix).
HASH_MULTIPLIER = 6364136223846793005


@dataclass
class Extensions:
    """The best extensions by one label, K for each of M utterances: B = M * K. Those dropped have the score -inf."""

    rows: Tensor  # (M,) which utterances
    parents: Tensor  # (B,) which hypotheses are extended
    tokens: Tensor  # (B,)
    scores: Tensor  # (B, 2 + S), those of the scorers as they were
    ids: Tensor  # (B, 2), the node as it was
    confidences: Tensor  # (B,) probability of the token among all labels, the scorers' weights included


def extend(scores: Tensor, ids: Tensor, places: Tensor, labels: Labels, floor: Tensor, k: int) -> Extensions | None:
    """Return the best extensions by one of `labels`, or None if all are below the `floor` (N,) of their utterances.

    Utterances may have less than K hypotheses: their `places` (B,), in order, are those they would have among N * K.
    """
    if scores.device.type == "cpu":
        from asrkit.search.extensions_numba import extend as compiled  # numba takes a second to import

        found = compiled(scores, ids, places, labels, floor, k)
    else:
        found = extend_torch(scores, ids, places, labels, floor, k)
    return Extensions(*found) if found[0].shape[0] else None


def merge(
    scores: Tensor, ids: Tensor, rows: Tensor, new_scores: Tensor, new_ids: Tensor, k: int, late: bool
) -> tuple[Tensor, ...]:
    """Merge extensions of the utterances `rows` (M,) with equal hypotheses and keep the K best of each, in place.

    `late` drops what is not among the K best of both before that. What else is known of hypotheses that are added stays
    to be done: returns their places among the hypotheses and among the extensions, both (B,).
    """
    if scores.device.type == "cpu":
        from asrkit.search.extensions_numba import merge as compiled

        return compiled(scores, ids, rows, new_scores, new_ids, k, late)
    return merge_torch(scores, ids, rows, new_scores, new_ids, k, late)


def extend_torch(
    scores: Tensor, ids: Tensor, places: Tensor, labels: Labels, floor: Tensor, k: int
) -> tuple[Tensor, ...]:
    n, width = len(floor), labels.tokens.shape[1]
    candidates = scores.new_full((n * k, width), -torch.inf)
    candidates = candidates.index_copy_(0, places, scores[:, :1] + labels.fused).view(n, -1)
    rows = (candidates.amax(dim=1) > floor).nonzero()[:, 0]
    best, index = candidates[rows].topk(k, dim=1)  # (M, K)
    index = (index + rows[:, None] * (k * width)).flatten()
    at = places.new_zeros(n * k).index_copy_(0, places, torch.arange(len(places), device=places.device))
    parents, rank = at[index // width], index % width
    tokens = labels.tokens[parents, rank]
    extended = scores[parents]
    extended[:, 0] = best.flatten()
    extended[:, 1] += labels.acoustic[parents, rank]
    extended[:, :2].masked_fill_((best <= floor[rows, None]).view(-1, 1), -torch.inf)
    extended_ids = ids[parents]
    extended_ids[:, 0].mul_(HASH_MULTIPLIER).add_(tokens)
    confidences = (labels.fused[parents, rank] - labels.all_fused[parents]).exp().clamp(max=1)
    return rows, parents, tokens, extended, extended_ids, confidences


def merge_torch(
    scores: Tensor, ids: Tensor, rows: Tensor, new_scores: Tensor, new_ids: Tensor, k: int, late: bool
) -> tuple[Tensor, Tensor]:
    m = len(rows)
    places = (rows[:, None] * k + torch.arange(k, device=rows.device)).flatten()
    old_scores, old_ids = scores[places], ids[places]
    if late:
        total = torch.cat([part[:, 0].view(m, k) for part in (old_scores, new_scores)], dim=1)
        worse = total < total.topk(k, dim=1).values[:, -1:]  # (M, 2 * K)
        worse = [part.flatten()[:, None].expand(-1, 2) for part in worse.split(k, dim=1)]
        old_scores[:, :2].masked_fill_(worse[0], -torch.inf)
        new_scores[:, :2].masked_fill_(worse[1], -torch.inf)
    # Hypotheses differ from each other, and so do their extensions: each equals at most one of the others.
    equal = new_ids[:, 0].view(m, -1, 1) == old_ids[:, 0].view(m, 1, k)  # (M, K, K)
    gain = new_scores[:, :2].view(m, -1, 1, 2).masked_fill(~equal[..., None], -torch.inf)
    gain, which = gain.max(dim=1)  # (M, K, 2)
    # The emission frames are those of the most probable alignment.
    nodes = new_ids[:, 1].view(m, -1).gather(1, which[..., 0]).flatten()
    gain = gain.view(-1, 2)
    old_ids[:, 1] = torch.where(gain[:, 0] > old_scores[:, 0], nodes, old_ids[:, 1])
    old_scores[:, :2] = torch.logaddexp(old_scores[:, :2], gain)

    total = new_scores[:, 0].view(m, -1).masked_fill(equal.any(dim=2), -torch.inf)
    total = torch.cat([old_scores[:, 0].view(m, k), total], dim=1)  # (M, 2 * K)
    kept = torch.zeros_like(total, dtype=torch.bool).scatter_(1, total.topk(k, dim=1).indices, True)
    # In each utterance as many places become free as are taken, so the two lists are in step.
    freed, born = (part.flatten().nonzero()[:, 0] for part in (~kept[:, :k], kept[:, k:]))
    used = total[:, k:].flatten()[born] > -torch.inf
    freed, born = freed[used], born[used]
    old_scores[freed], old_ids[freed] = new_scores[born], new_ids[born]
    scores.index_copy_(0, places, old_scores)
    ids.index_copy_(0, places, old_ids)
    return places[freed], born
