"""What the beam search does with a block of frames on the CPU, compiled: see `asrkit.search.beam`.

One call does for some frames what `Labels.best`, `extend`, `History.append` and `merge` do for one, whose compiled
parts it is made of: of a single stream, these calls cost five times what they compute.
"""

import numpy as np
from numba import njit

from asrkit.search.extensions_numba import LOWEST, _extend, _merge
from asrkit.search.labels_numba import _best_labels


@njit(cache=True, nogil=True, error_model="numpy")
def search_block(
    logits, added, factored, max_drop, late, rows, at, ends, numbers, scores, ids, memory_scores, nodes, sure, size
):
    """Take each of some utterances through a block of frames, up to the one in which it gets new hypotheses.

    Arrays are changed in place; the utterances are of the topology "modified".

    Args:
        logits: (A, F, K, V) of the hypotheses of the utterances `rows` (A,) in their next F frames.
        added: (N * K, V) what other models add to log-probabilities, or None.
        factored, max_drop, late: as in the model and in the search.
        at, ends: (N,) the next frame of each utterance, and how many it has.
        numbers: (N, T) what frames are called in the history.
        scores, ids, memory_scores: (N * K, …) of the hypotheses, as `asrkit.search.beam.Hypotheses` has them.
        nodes, sure: the arrays of a `History` that has room for A * F * K nodes more.
        size: its size.

    Returns:
        Its new size, and of the new hypotheses (B,) each: their places, their parents' and their last labels.
    """
    count, block, k, vocab = logits.shape
    width = min(k, vocab - 1)
    blank, all_fused = np.empty((2, k), np.float32)
    best, (acoustic, fused) = np.empty((k, width), np.int64), np.empty((2, k, width), np.float32)
    places, alone, floor = np.arange(k), np.zeros(1, np.int64), np.empty(1, np.float32)
    row, parents, tokens = np.empty(1, np.int64), np.empty(k, np.int64), np.empty(k, np.int64)
    waiting, new_scores = np.empty((2, k, scores.shape[1]), np.float32)
    new_ids, new_sure = np.empty((k, 2), np.int64), np.empty(k, np.float32)
    freed, born = np.empty((2, k), np.int64)
    found, new = np.empty((3, count * k), np.int64), 0
    for a in range(count):
        n, first = rows[a], rows[a] * k
        old_scores, old_ids = scores[first : first + k], ids[first : first + k]
        for f in range(min(block, ends[n] - at[n])):
            extra = None if added is None else added[first : first + k]
            _best_labels(logits[a, f], extra, factored, blank, best, acoustic, fused, all_fused)
            waiting[:] = old_scores
            for i in range(k):
                old_scores[i, 0] += blank[i]
                old_scores[i, 1] += blank[i]
            floor[0] = old_scores[:, 0].max() - np.float32(max_drop)
            frame = numbers[n, at[n]]
            at[n] += 1
            if not _extend(
                waiting, old_ids, places, best, acoustic, fused, all_fused, floor, k, row,
                parents, tokens, new_scores, new_ids, new_sure,
            ):  # fmt: skip
                continue
            for j in range(k):
                if new_scores[j, 0] == LOWEST:
                    break  # none follows: they are sorted
                for s in range(memory_scores.shape[1]):
                    new_scores[j, 2 + s] += memory_scores[first + parents[j], s, tokens[j]]
                nodes[size, 0], nodes[size, 1], nodes[size, 2] = new_ids[j, 1], tokens[j], frame
                sure[size], new_ids[j, 1] = new_sure[j], size
                size += 1
            births = _merge(old_scores, old_ids, alone, new_scores, new_ids, k, late, freed, born)
            for b in range(births):
                found[0, new], found[1, new] = first + freed[b], first + parents[born[b]]
                found[2, new] = tokens[born[b]]
                new += 1
            if births:
                break
    return size, found[:, :new]
