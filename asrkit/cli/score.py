"""`asrkit score`: word error rate of one system, and whether it differs from a baseline.

Usage:
    asrkit score --refs data/mini/test.jsonl.gz --hyps exp/asr/test/nbest.jsonl --out exp/asr/test --by speaker domain
"""

import json
import sys
from pathlib import Path
from typing import Any

from asrkit.cli.main import command_line, run
from asrkit.data.formats import read_nbest, read_partials, read_text, write_lines
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.scoring.confidence import confidence_report
from asrkit.scoring.latency import latency_report
from asrkit.scoring.phrases import phrase_report, recall_gain
from asrkit.scoring.report import comparison, report
from asrkit.scoring.wer import Alignment, align_all, alignment_text, ser_line, sum_errors, wer_line
from asrkit.types import Hypothesis, Word

LATENCIES = {"first_partial": "first words", "emission": "each word", "final": "final text"}


def score(
    *,
    refs: Path,
    hyps: Path,
    out: Path,
    baseline: Path | None = None,
    by: list[str] | None = None,
    blocks: str | None = None,
    phrases: Path | None = None,
) -> None:
    """Print the word error rate with its 95% interval; write score.json and alignments.txt.

    Where the hypotheses have confidences: also how well these tell right words from wrong ones. Where they were decoded
    as streams (partials.jsonl beside nbest.jsonl) and the references have word times: also the latency.

    Args:
        refs: references: a manifest (.jsonl, .jsonl.gz), or Kaldi text, "utterance words".
        hyps: hypotheses of the same utterances: nbest.jsonl, or Kaldi text.
        out: folder for score.json and alignments.txt.
        baseline: hypotheses of another system: tells how far the difference could be chance.
        by: attributes of the manifest's supervisions (speaker, gender, or a custom field such as domain); the errors
            are broken down by each.
        blocks: attribute whose values are independent of each other, such as speaker: intervals and significance are
            then taken over speakers instead of utterances.
        phrases: file of phrases, one a line (what follows a tab is ignored): their recall and precision are shown.
    """
    texts, groups = read_references(refs, [*(by or ()), *([blocks] if blocks else ())])
    recognised, confidences = read_hypotheses(hyps)
    alignments, missing = _align(texts, recognised, hyps)
    figures: dict[str, Any] = {"command": command_line(), "references": str(refs), "hypotheses": str(hyps)}
    figures |= {"missing": missing, **report(alignments, groups, blocks)}
    if confidences and (found := confidence_report(alignments, confidences)):
        figures["confidence"] = found
    if latency := _latency(alignments, refs, hyps):
        figures["latency"] = latency
    listed = _read_phrases(phrases) if phrases else []
    if phrases:
        figures["phrases"] = phrase_report(alignments, listed, groups.get(blocks))
    if baseline:
        others = _align(texts, read_hypotheses(baseline)[0], baseline)[0]
        compared = comparison(others, alignments, groups.get(blocks))
        figures["baseline"] = {"hypotheses": str(baseline), **compared}
        if phrases:
            figures["phrases"]["gain"] = recall_gain(others, alignments, listed, groups.get(blocks))

    write_lines((f"{alignment_text(alignment)}\n" for alignment in alignments), out / "alignments.txt")
    with atomic_write(out / "score.json") as file:
        json.dump(figures, file, indent=1, ensure_ascii=False)
        file.write("\n")
    _print_summary(alignments, figures)


def read_references(refs: Path, attributes: list[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return utterance -> text, and attribute -> utterance -> value; a manifest is read line by line.

    Raises:
        InputError: a broken file, an utterance that comes twice or has not exactly one supervision with text, an
            attribute that it lacks, or attributes asked of Kaldi text.
    """
    if not str(refs).endswith((".jsonl", ".jsonl.gz")):
        if attributes:
            raise InputError(f"{refs}: plain text has no attribute '{attributes[0]}'; give a manifest")
        return read_text(refs), {}

    from asrkit.data.manifests import load_cuts  # lhotse takes a second to import, and Kaldi text needs none of it

    texts: dict[str, str] = {}
    groups: dict[str, dict[str, str]] = {name: {} for name in attributes}
    for cut in load_cuts(refs, lazy=True):
        if len(cut.supervisions) != 1 or cut.supervisions[0].text is None:
            raise InputError(f"{refs}: cut '{cut.id}' has not exactly one supervision with text")
        if cut.id in texts:
            raise InputError(f"{refs}: utterance '{cut.id}' comes twice")
        texts[cut.id] = cut.supervisions[0].text
        for name, values in groups.items():
            value = getattr(cut.supervisions[0], name, None)
            if value is None:
                raise InputError(f"{refs}: cut '{cut.id}' has no attribute '{name}'")
            values[cut.id] = str(value)
    return texts, groups


def read_hypotheses(hyps: Path) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Return utterance -> best text of nbest.jsonl or Kaldi text, and -> confidences of its words where all have one.

    Raises:
        InputError: a broken file, an utterance that comes twice, or a confidence beyond 0 to 1.
    """
    if not str(hyps).endswith(".jsonl"):
        return read_text(hyps), {}
    texts: dict[str, str] = {}
    confidences: dict[str, list[float | None]] = {}
    for nbest in read_nbest(hyps):
        if nbest.utterance in texts:
            raise InputError(f"{hyps}: utterance '{nbest.utterance}' comes twice")
        best = nbest.hyps[0] if nbest.hyps else Hypothesis((), (), (), 0.0)
        texts[nbest.utterance] = best.text
        values = [word.confidence for word in best.words for _ in word.text.split()]
        for value in values:
            if not (value is None or isinstance(value, (int, float)) and 0 <= value <= 1):
                raise InputError(f"{hyps}: utterance '{nbest.utterance}': confidence {value} is not between 0 and 1")
        confidences[nbest.utterance] = values
    complete = not any(None in values for values in confidences.values())
    return texts, confidences if complete else {}


def _latency(alignments: list[Alignment], refs: Path, hyps: Path) -> dict[str, Any] | None:
    """Return the latencies, or None if the hypotheses are of no streams or the references lack word times.

    Raises:
        InputError: partial results that end in other words than the hypotheses.
    """
    file = hyps.parent / "partials.jsonl"
    if hyps.name != "nbest.jsonl" or not file.exists() or not (times := read_word_times(refs)):
        return None
    partials = read_partials(file)
    words: dict[str, list[Word]] = {}
    for nbest in read_nbest(hyps):
        best = nbest.hyps[0] if nbest.hyps else Hypothesis((), (), (), 0.0)
        heard = partials.setdefault(nbest.utterance, [])
        if best.text != (heard[-1][1] if heard else ""):
            raise InputError(f"{file}: utterance '{nbest.utterance}' ends in other words than in {hyps}; decode again")
        words[nbest.utterance] = [word for word in best.words for _ in word.text.split()]
    return latency_report(alignments, times, words, {name: partials[name] for name in words})


def read_word_times(refs: Path) -> dict[str, list[Word]]:
    """Return utterance -> its reference words with their times; nothing unless every word has them."""
    if not str(refs).endswith((".jsonl", ".jsonl.gz")):
        return {}

    from asrkit.data.manifests import load_cuts

    times: dict[str, list[Word]] = {}
    for cut in load_cuts(refs, lazy=True):
        supervision = cut.supervisions[0]
        items = (supervision.alignment or {}).get("word", [])
        if len(items) != len(supervision.text.split()):
            return {}
        times[cut.id] = [Word(item.symbol, item.start, item.end) for item in items]
    return times


def _read_phrases(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {error}") from error
    phrases = [line.partition("\t")[0].strip() for line in lines]
    if not any(phrases):
        raise InputError(f"{file}: no phrases")
    return [phrase for phrase in phrases if phrase]


def _align(refs: dict[str, str], texts: dict[str, str], hyps: Path) -> tuple[list[Alignment], list[str]]:
    """Align the texts of the file `hyps`; warn of the utterances that it lacks and return them too."""
    missing = [utterance for utterance in refs if utterance not in texts]
    if missing:
        names = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        print(
            f"warning: {hyps}: {len(missing)} of {len(refs)} utterances are missing, their words count as deleted: "
            f"{names}",
            file=sys.stderr,
        )
    try:
        return align_all(refs, texts), missing
    except InputError as error:
        raise InputError(f"{hyps}: {error}") from error


def _print_summary(alignments: list[Alignment], figures: dict[str, Any]) -> None:
    print(wer_line(sum_errors(alignments)))
    print(ser_line(alignments))
    low, high = figures["wer_interval"]
    print(f"95% interval of the WER {low:.2f} to {high:.2f} (bootstrap over {figures['interval_over']}s)")
    if lost := figures["last_words"]["deleted"]:
        print(f"last word deleted in {lost} utterance{'s' * (lost > 1)}")
    if figures["other_words"]["words"]:
        print(f"WER of first words {figures['first_word']['wer']:.2f}, of others {figures['other_words']['wer']:.2f}")
    for name, values in figures["by"].items():
        for value, counts in values.items():
            wer = "-" if counts["wer"] is None else f"{counts['wer']:.2f}"
            print(f"{name} {value}: %WER {wer} [ {counts['errors']} / {counts['words']} ]")
    if found := figures.get("confidence"):
        print(_confidence_line(found))
    if figures.get("latency", {}).get("utterances"):
        print(_latency_line(figures["latency"]))
    if figures.get("phrases", {}).get("recall") is not None:
        found = figures["phrases"]
        low, high = found["recall_interval"]
        precision = "-" if found["precision"] is None else f"{found['precision']:.1f}"
        print(
            f"recall of {found['phrases']} phrases {found['recall']:.1f} of {found['occurrences']}, "
            f"95% interval {low:.1f} to {high:.1f}; precision {precision}"
        )
        if gain := found.get("gain"):
            print(f"against the baseline {gain['points']:+.1f}, 95% interval {gain['low']:+.1f} to {gain['high']:+.1f}")
    if "baseline" in figures:
        other = figures["baseline"]
        low, high = other["interval"]
        print(
            f"against {other['hypotheses']} (%WER {other['wer']:.2f}): {other['difference']:+.2f} points, 95% interval "
            f"{low:+.2f} to {high:+.2f}, probability of improvement {other['probability_of_improvement']:.3f}, "
            f"matched-pairs p = {other['p_value']:.2g}"
        )


def _confidence_line(figures: dict[str, Any]) -> str:
    line = f"confidence of {figures['words']} words: calibration error {figures['ece']:.1f}"
    if figures["auc"] is None:  # nothing to tell apart
        return line
    return f"{line}, area under the ROC curve {figures['auc']:.1f}, normalised cross entropy {figures['nce']:.3f}"


def _latency_line(figures: dict[str, Any]) -> str:
    parts = [f"{name} {_seconds(figures[key])}" for key, name in LATENCIES.items()]
    return f"latency, median and 90th percentile: {', '.join(parts)}; {figures['revised']:.1f}% of words revised"


def _seconds(spread: dict[str, Any]) -> str:
    return "-" if spread["median"] is None else f"{spread['median']:.2f} s ({spread['p90']:.2f})"


def main(argv: list[str]) -> None:
    run(score, argv)
