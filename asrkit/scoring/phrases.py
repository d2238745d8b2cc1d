"""Recall and precision of the phrases that matter: rare names, say, that a recogniser was given as context."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asrkit.scoring import significance
from asrkit.scoring.wer import GAP, Alignment


def phrase_counts(alignment: Alignment, phrases: Collection[tuple[str, ...]]) -> tuple[int, int, int]:
    """Count the listed phrases in one utterance: (in the reference, of these recognised, in the hypothesis).

    A phrase of the reference is recognised where all its words are aligned with themselves and nothing is inserted
    between them.
    """
    recognised = 0
    refs = [ref for ref, _ in alignment.pairs if ref != GAP]
    hyps = [hyp for _, hyp in alignment.pairs if hyp != GAP]
    pairs = tuple(alignment.pairs)
    for phrase in phrases:
        recognised += _occurrences(pairs, tuple((word, word) for word in phrase))
    return sum(_occurrences(refs, p) for p in phrases), recognised, sum(_occurrences(hyps, p) for p in phrases)


def phrase_report(
    alignments: Iterable[Alignment], phrases: Iterable[str], block_of: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return JSON-ready recall and precision, percent (None where undefined), and the recall's 95% interval."""
    phrases = _split(phrases)
    refs, recognised, hyps = _block_counts(alignments, phrases, block_of)
    interval = significance.rate_interval(recognised, refs) if refs.any() else None
    return {
        "phrases": len(phrases),
        "occurrences": int(refs.sum()),
        "recall": 100 * recognised.sum() / refs.sum() if refs.any() else None,
        "recall_interval": interval,
        "precision": 100 * recognised.sum() / hyps.sum() if hyps.any() else None,
    }


def recall_gain(
    baseline: Iterable[Alignment],
    alignments: Iterable[Alignment],
    phrases: Iterable[str],
    block_of: Mapping[str, str] | None = None,
) -> dict[str, float] | None:
    """Return the points of recall that a system has won over a baseline, the ends of their 95% interval, and p.

    None if the references hold none of the phrases.
    """
    phrases = _split(phrases)
    refs, before, _ = _block_counts(baseline, phrases, block_of)
    _, after, _ = _block_counts(alignments, phrases, block_of)
    if not refs.any():
        return None
    found = significance.compare(before, after, refs)
    low, high = found.interval
    return {"points": found.difference, "low": low, "high": high, "p_value": found.p_value}


def _split(phrases: Iterable[str]) -> set[tuple[str, ...]]:
    return {tuple(phrase.split()) for phrase in phrases}


def _block_counts(
    alignments: Iterable[Alignment], phrases: set[tuple[str, ...]], block_of: Mapping[str, str] | None
) -> np.ndarray:
    """Return `phrase_counts` of each utterance or block, (3, N)."""
    alignments = list(alignments)
    counts = np.array([phrase_counts(alignment, phrases) for alignment in alignments]).T  # (3, N)
    if block_of is None:
        return counts
    blocks = [block_of[alignment.utterance] for alignment in alignments]
    return np.stack([significance.sum_blocks(row, blocks) for row in counts])


def _occurrences(sequence: Sequence, part: tuple) -> int:
    return sum(tuple(sequence[i : i + len(part)]) == part for i in range(len(sequence) - len(part) + 1))
