"""What is in a manifest: hours, speakers, words, durations."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from lhotse.cut import Cut

PERCENTILES = (0, 1, 10, 50, 90, 99, 100)


@dataclass(frozen=True)
class Statistics:
    """`durations` are seconds at `PERCENTILES`; `unknown` counts running words outside a given vocabulary."""

    utterances: int
    hours: float
    speakers: int
    words: int
    vocabulary: int
    durations: tuple[float, ...]
    unknown: Counter[str]


def describe(cuts: Iterable[Cut], is_known: Callable[[str], bool] = lambda word: True) -> Statistics:
    """Count over cuts, of which there is at least one; `is_known` tells the words of a vocabulary."""
    durations, speakers, words = [], set(), Counter[str]()
    for cut in cuts:
        durations.append(cut.duration)
        for supervision in cut.supervisions:
            speakers.add(supervision.speaker)
            words.update((supervision.text or "").split())
    return Statistics(
        utterances=len(durations),
        hours=sum(durations) / 3600,
        speakers=len(speakers),
        words=words.total(),
        vocabulary=len(words),
        durations=tuple(np.percentile(durations, PERCENTILES).tolist()),
        unknown=Counter({word: count for word, count in words.items() if not is_known(word)}),
    )
