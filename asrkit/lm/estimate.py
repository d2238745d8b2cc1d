"""N-gram estimation: interpolated modified Kneser-Ney, as kenlm's `lmplz` has it, for texts of some million words.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", TR-10-98; the definitions are
those of Heafield et al., "Scalable Modified Kneser-Ney Language Model Estimation", ACL 2013.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from asrkit.errors import InputError
from asrkit.files import atomic_write

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # where the text is too small to estimate them
NEVER = -99.0  # log10 of the probability of what is never predicted

Gram = tuple[str, ...]


def kneser_ney(sentences: Iterable[Sequence[str]], order: int) -> list[dict[Gram, tuple[float, float]]]:
    """Return, for each order up to `order` (at least 2), n-gram -> (probability, back-off weight), both interpolated.

    Raises:
        InputError: there is no sentence, or one holds a word that stands for something else, as `<s>`.
    """
    counts = _adjusted_counts(sentences, order)
    models: list[dict[Gram, tuple[float, float]]] = []
    backoffs: dict[Gram, float] = {}
    for n, grams in enumerate(counts, start=1):
        discounts = _discounts(grams)
        totals: dict[Gram, int] = defaultdict(int)
        freed: dict[Gram, float] = defaultdict(float)
        for gram, count in grams.items():
            totals[gram[:-1]] += count
            freed[gram[:-1]] += discounts[min(count, 3)]
        backoffs = {context: freed[context] / totals[context] for context in totals}
        if n > 1:  # now it is known what follows the shorter n-grams
            models[-1] = {gram: (p, backoffs.get(gram, 1.0)) for gram, (p, _) in models[-1].items()}
        model = {}
        for gram, count in grams.items():
            context = gram[:-1]
            lower = models[-1][gram[1:]][0] if n > 1 else 1 / (len(grams) + 1)  # the unknown word is a word, too
            model[gram] = (count - discounts[min(count, 3)]) / totals[context] + backoffs[context] * lower, 1.0
        if n == 1:
            model |= {(UNKNOWN,): (backoffs[()] / (len(grams) + 1), 1.0), (START,): (0.0, 1.0)}
        models.append(model)
    return models


def write_arpa(models: Sequence[dict[Gram, tuple[float, float]]], file: Path | str) -> None:
    """Write what `kneser_ney` returns as an ARPA file, sorted, so that the same text gives the same bytes."""
    with atomic_write(file) as out:
        out.write("\\data\\\n")
        out.writelines(f"ngram {n}={len(model)}\n" for n, model in enumerate(models, start=1))
        for n, model in enumerate(models, start=1):
            out.write(f"\n\\{n}-grams:\n")
            for gram, (probability, backoff) in sorted(model.items()):
                log_prob = math.log10(probability) if probability else NEVER
                weight = f"\t{math.log10(backoff):.7g}" if n < len(models) else ""
                out.write(f"{log_prob:.7g}\t{' '.join(gram)}{weight}\n")
        out.write("\n\\end\\\n")


def _adjusted_counts(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """Count the n-grams of the highest order, and for lower ones the different words before them.

    Nothing comes before the start of a sentence: n-grams that begin with it are counted as they are.
    """
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = (START, *sentence, END)
        for word in sentence:
            if word in (START, END, UNKNOWN):
                raise InputError(f"the text holds '{word}', which a language model has for something else")
        for n in range(2, min(order, len(words) + 1)):
            counts[n - 1][words[:n]] += 1
        counts[-1].update(zip(*(words[i:] for i in range(order)), strict=False))
    for n in range(order - 1, 0, -1):
        counts[n - 1].update(gram[1:] for gram in counts[n])
    if not counts[0]:
        raise InputError("no text to estimate n-grams from")
    return counts


def _discounts(grams: Counter[Gram]) -> Sequence[float]:
    """Return what is taken from n-grams with counts 0, 1, 2, and 3 or more."""
    seen = Counter(count for count in grams.values() if count <= 4)
    if not all(seen[count] for count in (1, 2, 3)):
        return FALLBACK_DISCOUNTS
    y = seen[1] / (seen[1] + 2 * seen[2])
    discounts = [0.0] + [k - (k + 1) * y * seen[k + 1] / seen[k] for k in (1, 2, 3)]
    return discounts if all(0 <= d <= k for k, d in enumerate(discounts)) else FALLBACK_DISCOUNTS
