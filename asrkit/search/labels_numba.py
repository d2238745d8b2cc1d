"""`asrkit.search.labels.best_labels` on the CPU, compiled: what it computes in six passes over the logits takes two."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from asrkit.losses.nodes_numba import log_sigmoid, log_sum_exp

LOWEST = np.float32(-np.inf)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _best_labels(logits, added, factored, blank, tokens, acoustic, fused, all_fused):
    k, row = tokens.shape[1], np.empty(logits.shape[1] - 1, np.float32)
    for i in range(len(logits)):
        z, labels = logits[i, 0], logits[i, 1:]
        everything = log_sum_exp(labels)
        if factored:
            blank[i], shift = log_sigmoid(z), log_sigmoid(-z) - everything
        else:
            shift = -(max(z, everything) + np.log1p(np.exp(-abs(z - everything))))
            blank[i] = z + shift
        ranked = labels
        if added is not None:
            ranked = row
            for v in range(len(row)):
                row[v] = labels[v] + added[i, v + 1]
            everything = log_sum_exp(row)
        all_fused[i] = everything + shift

        best, index = fused[i], tokens[i]
        best[:] = LOWEST
        index[:] = 1
        least = LOWEST
        for v in range(len(ranked)):
            if ranked[v] > least:
                place = k - 1
                while place > 0 and ranked[v] > best[place - 1]:
                    best[place], index[place] = best[place - 1], index[place - 1]
                    place -= 1
                best[place], index[place] = ranked[v], v + 1
                least = best[k - 1]
        for place in range(k):
            acoustic[i, place] = logits[i, index[place]] + shift
            best[place] += shift


def best_labels(
    logits: Tensor, added: Tensor | None, factored: bool, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `asrkit.search.labels.best_labels`, for float32."""
    n = len(logits)
    results = torch.empty(n), torch.empty(n, k, dtype=torch.int64), *torch.empty(2, n, k), torch.empty(n)
    arrays = (None if x is None else x.numpy() for x in (logits, added))
    _best_labels(*arrays, factored, *(x.numpy() for x in results))
    return results
