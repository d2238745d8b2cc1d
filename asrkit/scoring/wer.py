"""Word error rate from kaldialign's minimum-edit alignment of reference and hypothesis words."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import kaldialign

from asrkit.errors import InputError

GAP = ""  # the missing side of an insertion or a deletion; never a word, because words come from str.split


@dataclass(frozen=True)
class Errors:
    """Edit counts; `words` is the number of reference words."""

    words: int = 0
    insertions: int = 0
    deletions: int = 0
    substitutions: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.words + other.words,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.substitutions + other.substitutions,
        )

    @property
    def total(self) -> int:
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """Errors per hundred reference words; NaN where there is no reference word."""
        return 100.0 * self.total / self.words if self.words else float("nan")


@dataclass(frozen=True)
class Alignment:
    """One utterance's (reference word, hypothesis word) pairs in order; one side of a pair may be `GAP`."""

    utterance: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def errors(self) -> Errors:
        return count_errors(self.pairs)


def count_errors(pairs: Iterable[tuple[str, str]]) -> Errors:
    """Count the edits of aligned pairs."""
    kinds = Counter(edit_of(ref, hyp) for ref, hyp in pairs)
    return Errors(kinds[" "] + kinds["D"] + kinds["S"], kinds["I"], kinds["D"], kinds["S"])


def edit_of(ref: str, hyp: str) -> str:
    """Return "I", "D", "S", or " " for a correct word."""
    if ref == hyp:
        return " "
    return "I" if ref == GAP else "D" if hyp == GAP else "S"


def align(utterance: str, ref: str, hyp: str) -> Alignment:
    """Align the words of two transcripts with the fewest edits, each of cost 1."""
    return Alignment(utterance, tuple(kaldialign.align(ref.split(), hyp.split(), GAP)))


def align_all(refs: Mapping[str, str], hyps: Mapping[str, str]) -> list[Alignment]:
    """Align every reference (utterance -> text) with its hypothesis, in the order of the references.

    An utterance without a hypothesis is aligned with silence: all its words are deletions.

    Raises:
        InputError: a hypothesis has no reference (named), or the references hold no word at all.
    """
    extra = [utterance for utterance in hyps if utterance not in refs]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise InputError(f"hypothesis '{extra[0]}'{more} has no reference")
    if not any(ref.split() for ref in refs.values()):
        raise InputError("the references hold no words")
    return [align(utterance, ref, hyps.get(utterance, "")) for utterance, ref in refs.items()]


def sum_errors(alignments: Iterable[Alignment]) -> Errors:
    return sum((alignment.errors for alignment in alignments), Errors())


def errors_by_position(alignments: Iterable[Alignment]) -> tuple[Errors, Errors]:
    """Return the errors of the first reference words and those of all other words.

    An inserted word counts with the reference word before it, or with the first where there is none before it. A
    transducer that has locked onto emitting its first token at frame 0 shows as a first-word rate above the other.
    """
    first, others = Errors(), Errors()
    for alignment in alignments:
        refs_seen = list(accumulate(ref != GAP for ref, _ in alignment.pairs))
        split = bisect_left(refs_seen, 2)
        first += count_errors(alignment.pairs[:split])
        others += count_errors(alignment.pairs[split:])
    return first, others


def deleted_last_words(alignments: Iterable[Alignment]) -> list[str]:
    """Return the utterances whose last reference word is missing: what a stream that ends too early loses."""
    deleted = []
    for alignment in alignments:
        _, hyp = next((pair for pair in reversed(alignment.pairs) if pair[0] != GAP), (GAP, None))
        if hyp == GAP:
            deleted.append(alignment.utterance)
    return deleted


def errors_by_group(alignments: Iterable[Alignment], group_of: Mapping[str, str]) -> dict[str, Errors]:
    """Sum the errors over the utterances of each group (`group_of`: utterance -> group), groups in sorted order."""
    sums: dict[str, Errors] = {}
    for alignment in alignments:
        group = group_of[alignment.utterance]
        sums[group] = sums.get(group, Errors()) + alignment.errors
    return dict(sorted(sums.items()))


def confusions(alignments: Iterable[Alignment], most: int = 20) -> dict[str, list[tuple[str, str, int]]]:
    """Return the most frequent (reference word, hypothesis word, count) of each kind of error, frequent first."""
    counts = Counter(pair for alignment in alignments for pair in alignment.pairs)
    ranked = sorted(((ref, hyp, count) for (ref, hyp), count in counts.items()), key=lambda row: (-row[2], row[:2]))
    names = {"S": "substitutions", "D": "deletions", "I": "insertions"}
    return {name: [row for row in ranked if edit_of(*row[:2]) == kind][:most] for kind, name in names.items()}


def wer_line(errors: Errors) -> str:
    """Return Kaldi's line, `%WER 3.80 [ 19 / 500, 3 ins, 4 del, 12 sub ]`."""
    counts = f"{errors.insertions} ins, {errors.deletions} del, {errors.substitutions} sub"
    return f"%WER {errors.rate:.2f} [ {errors.total} / {errors.words}, {counts} ]"


def ser_line(alignments: list[Alignment]) -> str:
    """Return Kaldi's sentence error line, `%SER 12.50 [ 5 / 40 ]`."""
    wrong = wrong_utterances(alignments)
    return f"%SER {100 * wrong / len(alignments):.2f} [ {wrong} / {len(alignments)} ]"


def wrong_utterances(alignments: Iterable[Alignment]) -> int:
    return sum(alignment.errors.total > 0 for alignment in alignments)


def alignment_text(alignment: Alignment, columns: int = 120) -> str:
    """Return the utterance's error line and its words in aligned columns, wrapped to `columns` characters.

    A gap is drawn as asterisks; the third row marks insertions I, deletions D and substitutions S:

        utt-7  %WER 33.33 [ 1 / 3, 0 ins, 0 del, 1 sub ]
          ref  turn  on   lights
          hyp  turn  off  lights
                     S
    """
    lines = [f"{alignment.utterance}  {wer_line(alignment.errors)}"]
    rows: list[list[str]] = [[], [], []]
    width = 0
    for ref, hyp in alignment.pairs:
        cell = max(len(ref), len(hyp))
        if rows[0] and width + cell + 2 > columns - 7:
            lines += _draw(rows)
            rows, width = [[], [], []], 0
        width += cell + 2
        for row, word in zip(rows, (ref or "*" * cell, hyp or "*" * cell, edit_of(ref, hyp)), strict=True):
            row.append(word.ljust(cell))
    return "\n".join(lines + _draw(rows))


def _draw(rows: list[list[str]]) -> list[str]:
    return [("  " + "  ".join([name, *row])).rstrip() for name, row in zip(("ref", "hyp", "   "), rows, strict=True)]
