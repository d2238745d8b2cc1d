"""What `score.json` holds: the error rates of one system on one set, with their interval and breakdowns."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from asrkit.scoring import significance
from asrkit.scoring.wer import (
    Alignment,
    Errors,
    confusions,
    deleted_last_words,
    errors_by_group,
    errors_by_position,
    sum_errors,
    wrong_utterances,
)


def report(
    alignments: list[Alignment], groups: Mapping[str, Mapping[str, str]], blocks: str | None = None
) -> dict[str, Any]:
    """Return the JSON-ready figures of one system.

    Rates are percent. `groups`: attribute -> utterance -> value, for the breakdown "by"; `blocks` names the attribute
    whose values are independent of each other (None: the utterances are).
    """
    first, others = errors_by_position(alignments)
    return {
        **rates(sum_errors(alignments)),
        "wer_interval": significance.rate_interval(*counts(alignments, groups.get(blocks))),
        "interval_over": blocks or "utterance",
        "utterances": len(alignments),
        "ser": 100 * wrong_utterances(alignments) / len(alignments),
        "first_word": rates(first),
        "other_words": rates(others),
        "last_words": _last_words(deleted_last_words(alignments)),
        "by": {
            name: {value: rates(errors) for value, errors in errors_by_group(alignments, group_of).items()}
            for name, group_of in groups.items()
        },
        "confusions": confusions(alignments),
    }


def comparison(
    baseline: list[Alignment], alignments: list[Alignment], block_of: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the JSON-ready difference from a baseline on the same references (below zero: better than it).

    "last_words" are those that are deleted here and not in the baseline.
    """
    errors_a, words = counts(baseline, block_of)
    errors_b, _ = counts(alignments, block_of)
    difference = significance.compare(errors_a, errors_b, words)
    before = set(deleted_last_words(baseline))
    lost = _last_words([utterance for utterance in deleted_last_words(alignments) if utterance not in before])
    return {"wer": sum_errors(baseline).rate, **asdict(difference), "last_words": lost}


def _last_words(deleted: list[str]) -> dict[str, Any]:
    return {"deleted": len(deleted), "utterances": deleted}


def rates(errors: Errors) -> dict[str, float | int | None]:
    """Return the counts and "wer" (None, JSON's null, where there is no reference word)."""
    return {"wer": None if math.isnan(errors.rate) else errors.rate, "errors": errors.total, **asdict(errors)}


def counts(alignments: list[Alignment], block_of: Mapping[str, str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the errors (B,) and the reference words (B,) of each block, or of each utterance."""
    errors = np.array([alignment.errors.total for alignment in alignments])
    words = np.array([alignment.errors.words for alignment in alignments])
    if block_of is None:
        return errors, words
    blocks = [block_of[alignment.utterance] for alignment in alignments]
    return significance.sum_blocks(errors, blocks), significance.sum_blocks(words, blocks)
