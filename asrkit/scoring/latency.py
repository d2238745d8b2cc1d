"""How soon the words of a stream are known.

All times are seconds of audio: what the algorithm has to wait for. Computing comes on top; it is small as long as the
real-time factor is. The partial results of an utterance are (audio heard, all words so far), one each time that the
words changed; the last one is the final result.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asrkit.scoring.wer import GAP, Alignment
from asrkit.types import Word

Partials = Sequence[tuple[float, str]]


def latency_report(
    alignments: Iterable[Alignment],
    refs: Mapping[str, Sequence[Word]],
    hyps: Mapping[str, Sequence[Word]],
    partials: Mapping[str, Partials],
) -> dict[str, Any]:
    """Return JSON-ready latencies (seconds), each as mean, median, 90th and 99th percentile over its events.

    "first_partial": from the start of an utterance's first word to the first partial result that has words.
    "emission": from the end of each word that is recognised correctly until it stands at its place for good.
    "token": from that end to the end of the frame in which the model emitted the word's last token: its own delay.
    "final": from the end of an utterance's last word until the whole final text stands.
    "revised": words of partial results that the next one did not confirm, per hundred words of the final results
    (the unstable partial word ratio; Shangguan et al., 2006.01416).

    Args:
        alignments: of the references with the final hypotheses.
        refs: utterance -> its reference words with their true times.
        hyps: utterance -> the words of its final hypothesis, which end with the frame of their last token.
        partials: utterance -> its partial results. Utterances that never had words are left out.
    """
    first, emission, token, final = [], [], [], []
    revised = words = 0
    for alignment in alignments:
        heard, spoken = partials.get(alignment.utterance, ()), refs[alignment.utterance]
        shown = [time for time, text in heard if text]
        if not shown or not spoken:
            continue
        hyp, stands = hyps[alignment.utterance], standing_times(heard)
        first.append(shown[0] - spoken[0].start)
        final.append(heard[-1][0] - spoken[-1].end)
        for i, j in correct_words(alignment):
            emission.append(stands[j] - spoken[i].end)
            token.append(hyp[j].end - spoken[i].end)
        revised += revised_words(heard)
        words += len(hyp)
    events = {"first_partial": first, "emission": emission, "token": token, "final": final}
    spreads = {name: spread(values) for name, values in events.items()}
    return {"utterances": len(first), **spreads, "revised": 100 * revised / max(words, 1)}


def correct_words(alignment: Alignment) -> list[tuple[int, int]]:
    """Return (place in the reference, place in the hypothesis) of each word that is right."""
    places, i, j = [], 0, 0
    for ref, hyp in alignment.pairs:
        if ref == hyp:
            places.append((i, j))
        i += ref != GAP
        j += hyp != GAP
    return places


def standing_times(partials: Partials) -> list[float]:
    """Return for each word of the last partial result since when it has been at its place without a break."""
    final = partials[-1][1].split()
    times = [math.nan] * len(final)
    standing = set(range(len(final)))
    for time, text in reversed(partials):
        words = text.split()
        standing = {place for place in standing if place < len(words) and words[place] == final[place]}
        for place in standing:
            times[place] = time
    return times


def revised_words(partials: Partials) -> int:
    """Count the words of each partial result that are not at their place in the next one."""
    texts = [text.split() for _, text in partials]
    return sum(
        place >= len(after) or after[place] != word
        for before, after in zip(texts, texts[1:], strict=False)
        for place, word in enumerate(before)
    )


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return the number of values with their mean, median, 90th and 99th percentile, or None where there are none."""
    if not values:
        return {"events": 0, "mean": None, "median": None, "p90": None, "p99": None}
    median, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
    return {"events": len(values), "mean": float(np.mean(values)), "median": median, "p90": p90, "p99": p99}
