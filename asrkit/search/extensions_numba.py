"""`asrkit.search.extensions` on the CPU, compiled."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from asrkit.search.extensions import HASH_MULTIPLIER
from asrkit.search.labels import Labels

LOWEST = np.float32(-np.inf)
MULTIPLIER = np.int64(HASH_MULTIPLIER)


@njit(cache=True, nogil=True, error_model="numpy")
def _extend(
    scores, ids, places, tokens, acoustic, fused, all_fused, floor, k, rows, parents, labels, new_scores, new_ids, sure
):
    found = first = 0
    for n in range(len(floor)):
        last = first
        while last < len(places) and places[last] < (n + 1) * k:
            last += 1
        base, size = found * k, 0
        for b in range(first, last):
            for w in range(tokens.shape[1]):  # best first
                total = scores[b, 0] + fused[b, w]
                if not total > floor[n] or (size == k and total <= new_scores[base + k - 1, 0]):
                    break
                place = base + (k - 1 if size == k else size)
                size = min(size + 1, k)
                while place > base and total > new_scores[place - 1, 0]:
                    parents[place], labels[place] = parents[place - 1], labels[place - 1]
                    new_scores[place] = new_scores[place - 1]
                    sure[place] = sure[place - 1]
                    place -= 1
                parents[place], labels[place], sure[place] = b, tokens[b, w], fused[b, w] - all_fused[b]
                new_scores[place] = scores[b]
                new_scores[place, 0], new_scores[place, 1] = total, scores[b, 1] + acoustic[b, w]
        if size:
            for place in range(base, base + size):
                new_ids[place, 0] = ids[parents[place], 0] * MULTIPLIER + labels[place]
                new_ids[place, 1] = ids[parents[place], 1]
                sure[place] = min(np.exp(sure[place]), np.float32(1))
            for place in range(base + size, base + k):
                parents[place], labels[place], sure[place] = first, 1, 0
                new_scores[place], new_ids[place] = scores[first], ids[first]
                new_scores[place, 0] = new_scores[place, 1] = LOWEST
            rows[found] = n
            found += 1
        first = last
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _log_add(x, y):
    high, low = max(x, y), min(x, y)
    return high if low == LOWEST else high + np.log1p(np.exp(low - high))


@njit(cache=True, nogil=True, error_model="numpy")
def _merge(scores, ids, rows, new_scores, new_ids, k, late, freed, born):
    count = 0
    alone, totals = np.empty(k, np.bool_), np.empty(2 * k, np.float32)
    for m in range(len(rows)):
        old, new = rows[m] * k, m * k
        if late:
            totals[:k], totals[k:] = scores[old : old + k, 0], new_scores[new : new + k, 0]
            for i in range(2 * k):
                better = 0
                for total in totals:
                    better += total > totals[i]
                if better >= k:
                    some, place = (scores, old + i) if i < k else (new_scores, new + i - k)
                    some[place, 0] = some[place, 1] = LOWEST
        for j in range(new, new + k):
            alone[j - new] = new_scores[j, 0] > LOWEST
            for i in range(old, old + k):
                if new_scores[j, 0] > LOWEST and ids[i, 0] == new_ids[j, 0]:
                    alone[j - new] = False
                    if new_scores[j, 0] > scores[i, 0]:
                        ids[i, 1] = new_ids[j, 1]  # the emission frames are those of the most probable alignment
                    for c in range(2):
                        scores[i, c] = _log_add(scores[i, c], new_scores[j, c])
        for _ in range(k):  # the best of those that are left takes the place of the worst
            best = -1
            for j in range(new, new + k):
                if alone[j - new] and (best < 0 or new_scores[j, 0] > new_scores[best, 0]):
                    best = j
            worst = old
            for i in range(old + 1, old + k):
                if scores[i, 0] < scores[worst, 0]:
                    worst = i
            if best < 0 or not new_scores[best, 0] > scores[worst, 0]:
                break
            scores[worst], ids[worst] = new_scores[best], new_ids[best]
            freed[count], born[count] = worst, best
            alone[best - new] = False
            count += 1
    return count


def extend(scores: Tensor, ids: Tensor, places: Tensor, labels: Labels, floor: Tensor, k: int) -> tuple[Tensor, ...]:
    """As `asrkit.search.extensions.extend_torch`."""
    n = floor.shape[0]
    size = n * k
    rows, parents, tokens = (torch.empty(length, dtype=torch.int64) for length in (n, size, size))
    results = (
        rows,
        parents,
        tokens,
        scores.new_empty(size, scores.shape[1]),
        ids.new_empty(size, 2),
        floor.new_empty(size),
    )
    known = scores, ids, places, labels.tokens, labels.acoustic, labels.fused, labels.all_fused, floor
    found = _extend(*(x.numpy() for x in known), k, *(x.numpy() for x in results))
    return rows[:found], *(x[: found * k] for x in results[1:])


def merge(
    scores: Tensor, ids: Tensor, rows: Tensor, new_scores: Tensor, new_ids: Tensor, k: int, late: bool
) -> tuple[Tensor, Tensor]:
    """As `asrkit.search.extensions.merge_torch`."""
    freed, born = (rows.new_empty(new_ids.shape[0]) for _ in range(2))
    given = (x.numpy() for x in (scores, ids, rows, new_scores, new_ids))
    count = _merge(*given, k, late, freed.numpy(), born.numpy())
    return freed[:count], born[:count]
