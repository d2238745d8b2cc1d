"""How sure a search is of the words that it found, from posterior probabilities alone.

The confidence of a word is the geometric mean of two probabilities:

- of its labels among all labels, each in the encoder frame of its emission and given the labels before it, which knows
  every rival but nothing of what is heard later;
- of the word among the N best hypotheses, which have heard all but are few.

Together they tell right words from wrong ones better than either alone or the entropy of the labels' distribution
(Laptev and Ginsburg, "Fast Entropy-Based Methods of Word-Level Confidence Estimation for End-to-End Automatic Speech
Recognition", 2212.08703), in clean and in noisy speech and with language models. The root makes up for the product's
doubting too much where most words are right.
"""

import math
from collections.abc import Sequence

import kaldialign
from torch import Tensor

from asrkit.scoring.wer import GAP


def among_labels(label: Tensor, blank: Tensor) -> Tensor:
    """Return the probability of a label given that it is not the blank, from the log-probabilities of both."""
    return (label - (-blank.expm1()).log()).exp().clamp(max=1)


def word_posteriors(hyps: Sequence[Sequence[str]], scores: Sequence[float], most: int) -> list[list[float]]:
    """Return the posterior probability of each word of the first `most` of an utterance's hypotheses.

    It is the share of exp(score) that the hypotheses have together in which the word is aligned with itself.
    """
    weights = [math.exp(score - max(scores)) for score in scores]
    shares = [weight / sum(weights) for weight in weights]
    posteriors = [[share] * len(hyp) for hyp, share in zip(hyps[:most], shares, strict=False)]
    for i, posterior in enumerate(posteriors):
        for j, rival in enumerate(hyps):
            if i != j:
                pairs = (pair for pair in kaldialign.align(hyps[i], rival, GAP) if pair[0] != GAP)
                for position, (word, other) in enumerate(pairs):
                    posterior[position] += shares[j] * (word == other)
    return posteriors


def word_confidence(labels: Sequence[float], posterior: float) -> float:
    """Return the confidence of a word from the probabilities of its labels and its posterior in the N-best list."""
    return math.sqrt(math.prod(labels) * min(1.0, posterior))
