"""RESULTS.md of a recipe: every figure read from the JSON files of its experiments, none written by hand.

The recipe's `results.yaml` says what is shown:

    title: Streaming transducer on mini
    text: What the reader should know before the figures.
    rows:                                     # one decoded set each; the key is its name in the claims
      seen: {name: "new sentences, training voices", dir: asr/test_seen}
      streaming: {name: "the same, streaming", dir: asr/test_seen_streaming}
      pruned: {name: "pruned loss", dir: [pruned-0/test, pruned-1/test]}    # seeds: means, with the WER's spread
    claims:
      - {claim: WER on new sentences, value: seen.wer, at_most: 5}
      - {claim: loss of streaming in points, value: streaming.wer - seen.wer, at_most: 1, paper: "0.4"}
      - {claim: no early-emission lock, value: seen.first_word.wer - seen.other_words.wer, at_most: 1}
    pictures: {pictures/curve.png: Learning curve}

`dir` is a folder of the experiments' folder with `score.json` and, if it was decoded by asrkit, `decode.json`;
`train.json` and `compress.json` are taken from it or from the nearest folder above. A `score.json` of `asrkit der`,
with `diarise.json` beside it, is shown in a table of its own, and so are an export with `export.json` and what `asrkit
compress report` measured, in `compress.json`. Of several folders each figure is the mean, and `wer_spread`
(`der_spread`, `accuracy_spread`) the standard deviation of their WERs (DERs, accuracies). A `value` is arithmetic
(+ - * / and parentheses) over `row.key`, where the keys are those of that file, and `decode.key`, `diarise.key`,
`compress.key` and `train.key` for the others; a name that is no identifier stands in brackets,
`seen.by.speaker["spk-1"].wer`.
Without `at_most` or `at_least` a claim only shows its value, beside the `paper`'s if given.
"""

import ast
import itertools
import json
import operator
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrkit.errors import InputError

NONE = "–"  # shown where a figure does not exist
LATENCY_NOTE = """Chunk and lookahead in encoder frames; latencies in seconds of audio, medians with 90th percentiles:
from the start of the first word to the first partial result, from the end of each correct word until it stands for good
and until the model emitted its last token, from the end of the last word until the final text stands. The time of
computing comes on top."""
EXPORT_NOTE = """Model → export, greedily / with beam search, on one thread: word error rate, utterances that the two
transcribe differently, real-time factor (processor time over audio time, features and search included). An export is
blessed if greedily its word error rate is that of the model, within 0.1 points, on every set."""
DIARISATION_NOTE = """Diarisation error rate in percent of the time of speech, all meetings together, with its 95%
bootstrap interval over meetings, and its three parts; Jaccard error rate; speakers found beyond the true number, the
mean with the mean of absolute differences; error of the tracks' azimuths while their speakers speak, median with 90th
percentile. A collar is left out on each side of every boundary of the reference."""
COMPRESSION_NOTE = """Accuracy, percent of test images, or word error rate, with its 95% interval, or over seeds the
mean with its standard deviation and the range; what pruning left of the weights and of the multiplications; the
compiled network's weights in kilobytes, and its processor time on one thread; how many times as fast that is as the
dense network, compiled as well, and as that in the best of the engines, that one among them."""
RUNS = ("decode", "diarise", "compress")  # JSON files beside or above score.json that tell more about it
RATES = ("der", "accuracy", "wer")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@dataclass(frozen=True)
class Row:
    """One decoded set, or the same set decoded by models that differ in their seeds only; or an exported model."""

    name: str
    dir: str | list[str]

    @property
    def dirs(self) -> list[str]:
        return [self.dir] if isinstance(self.dir, str) else self.dir


@dataclass(frozen=True)
class Claim:
    """A figure with its target; `paper` is the source's own figure, as text."""

    claim: str
    value: str
    at_most: float | None = None
    at_least: float | None = None
    paper: str = NONE


@dataclass(frozen=True)
class Results:
    """What `results.yaml` holds."""

    title: str
    rows: dict[str, Row]
    text: str = ""
    claims: list[Claim] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)


def read_measures(rows: dict[str, Row], experiments: Path) -> dict[str, dict[str, Any]]:
    """Return, for each row, its `score.json` with `decode.json`, `diarise.json` and `train.json` under those keys
    (empty if absent).

    An export has `export.json` in the place of `score.json`.

    Raises:
        InputError: a row has neither of them, or a file is no JSON object; names the file.
    """
    return {key: _over_seeds([_measure(folder, experiments) for folder in row.dirs]) for key, row in rows.items()}


def _measure(folder: str, experiments: Path) -> dict[str, Any]:
    """Return the figures of one decoded set, or of one export."""
    name = "export.json" if (experiments / folder / "export.json").exists() else "score.json"
    measure = _read_json(experiments / folder / name) | {"train": {}}
    places = [Path(folder), *Path(folder).parents]
    for run in RUNS:
        files = (experiments / place / f"{run}.json" for place in places)
        measure[run] = next((_read_json(file) for file in files if file.exists()), {})
    for place in places:
        if (experiments / place / "train.json").exists():
            measure["train"] = _read_json(experiments / place / "train.json") | {"experiment": str(place)}
            break
    return measure


def _over_seeds(measures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the one measure as it is, or the means of several with the spread of their error rates."""
    if len(measures) == 1:
        return measures[0]
    mean = _mean(measures)
    rate = next(name for name in RATES if name in mean)
    mean[f"{rate}_spread"] = statistics.stdev(measure[rate] for measure in measures)
    return mean | {"seeds": measures}


def _mean(values: list[Any]) -> Any:
    """Average numbers wherever they are in equally built figures; of all else keep the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values if key in value]) for key in first}
    numbers = all(isinstance(value, (int, float)) for value in values)
    return statistics.fmean(values) if numbers and len(set(values)) > 1 else first


def evaluate(expression: str, measures: dict[str, Any]) -> float:
    """Compute a claim's `value`; nothing but arithmetic over measures is accepted.

    Raises:
        InputError: not such an expression, or a name that is not measured; quotes the expression.
    """
    try:
        return _number(ast.parse(expression, mode="eval").body, measures)
    except SyntaxError as error:
        raise InputError(f"value '{expression}': not an arithmetic expression") from error
    except KeyError as error:
        raise InputError(f"value '{expression}': {error} is not measured") from error
    except (InputError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"value '{expression}': {error}") from error


def is_met(claim: Claim, value: float) -> bool:
    too_high = claim.at_most is not None and value > claim.at_most
    too_low = claim.at_least is not None and value < claim.at_least
    return not too_high and not too_low


def markdown(results: Results, measures: dict[str, dict[str, Any]], git: str, machine: str) -> str:
    """Return RESULTS.md; the same inputs give the same text."""
    rates, exports = _wer_table(results.rows, measures), _export_table(results.rows, measures)
    written = "Written by `asrkit results`." + " Rates are percent of words." * bool(rates or exports)
    parts = [f"# {results.title}", results.text.strip(), written]
    if rates:
        parts += ["## Word error rates", rates]
    diarised = _diarisation_table(results.rows, measures)
    if diarised:
        parts += ["## Diarisation", DIARISATION_NOTE, diarised]
    if exports:
        parts += ["## Exports", EXPORT_NOTE, exports]
    compressed = _compression_table(results.rows, measures)
    if compressed:
        parts += ["## Compression", COMPRESSION_NOTE, compressed]
    latencies = _latency_table(results.rows, measures)
    if latencies:
        parts += ["## Latency", LATENCY_NOTE, latencies]
    compared = _comparison_table(results.rows, measures)
    if compared:
        parts += ["## Differences", compared]
    if results.claims:
        parts += ["## Claims", _claim_table(results.claims, measures)]
    trained = _training_table(measures)
    if trained:
        parts += ["## Training", trained]
    for file, caption in results.pictures.items():
        parts.append(f"![{caption}]({file})\n\n{caption}")
    parts += ["## Made by", f"- git: {git}\n- machine: {machine}", f"```\n{_commands(measures)}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _value(node: ast.expr, measures: Any) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, measures)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_number(left, measures), _number(right, measures))
        case ast.Name(id=name):
            return measures[name]
        case ast.Attribute(value=whole, attr=name):
            return _value(whole, measures)[name]
        case ast.Subscript(value=whole, slice=ast.Constant(value=str() as name)):
            return _value(whole, measures)[name]
    raise InputError("only + - * / and parentheses over row.key are understood")


def _number(node: ast.expr, measures: Any) -> float:
    value = _value(node, measures)
    if isinstance(value, (int, float)):
        return value
    raise InputError(f"{ast.unparse(node)} is not a number")


def _wer_table(rows: dict[str, Row], measures: dict[str, dict[str, Any]]) -> str:
    head = ("set", "WER", "95% interval", "words", "ins", "del", "sub", "first word", "other words")
    body = []
    for key, row in rows.items():
        score = measures[key]
        if "wer" not in score:
            continue
        decimals = 1 if "seeds" in score else 0
        names = ("words", "insertions", "deletions", "substitutions")
        counts = (f"{score[name]:.{decimals}f}" for name in names)
        positions = (_show(score[name]["wer"], 2) for name in ("first_word", "other_words"))
        cells = (row.name, *_rate_cells(score, "wer"), *counts, *positions)
        body.append((*cells, _real_time_factor(score["decode"]), _parameters(score["train"])))
    return _table((*head, "real-time factor", "parameters"), body) if body else ""


def _diarisation_table(rows: dict[str, Row], measures: dict[str, dict[str, Any]]) -> str:
    """Return what `asrkit der` scored; empty if it scored nothing."""
    body = []
    for key, row in rows.items():
        score = measures[key]
        if "der" not in score:
            continue
        parts = (_show(score[name], 2) for name in ("missed", "false_alarm", "confusion", "jer"))
        speakers = f"{score['speaker_bias']:+.2f} ({score['speaker_error']:.2f})"
        azimuth = score.get("azimuth", {})
        degrees = f"{_show(azimuth.get('median'), 1)} ({_show(azimuth.get('p90'), 1)})" if azimuth else NONE
        cells = (row.name, f"{score['meetings']:.0f}", *_rate_cells(score, "der"), *parts, speakers, degrees)
        scored = f"collar {score['collar']:g} s, overlap {score['overlap']}"
        body.append((*cells, _real_time_factor(score["diarise"]), scored))
    head = ("set", "meetings", "DER", "95% interval", "missed", "false alarm", "confusion", "JER", "speakers too many")
    return _table((*head, "azimuth error, °", "real-time factor", "scored"), body) if body else ""


def _export_table(rows: dict[str, Row], measures: dict[str, dict[str, Any]]) -> str:
    """Return how exports compare with their models, one line a checked set; empty if none was checked."""
    body = []
    for key, row in rows.items():
        report = measures[key]
        megabytes = _show(sum(report.get("bytes", {}).values()) / 1e6, 1)
        verdict = "yes" if report.get("blessed") else "**no**"
        for manifest, checks in itertools.groupby(report.get("check", ()), key=lambda check: check["manifest"]):
            cells = zip(*map(_compared, checks), strict=True)
            body.append((row.name, megabytes, Path(manifest).name.partition(".")[0], *map(" / ".join, cells), verdict))
    return _table(("export", "MB", "set", "WER", "differ", "real-time factor", "blessed"), body) if body else ""


def _compression_table(rows: dict[str, Row], measures: dict[str, dict[str, Any]]) -> str:
    """Return what compressed networks can do and what they take; empty if there are none."""
    body = []
    for key, row in rows.items():
        score = measures[key]
        if not (found := score["compress"]):
            continue
        rate = next(name for name in RATES if name in score)
        shares = (_show(100 * found[name], 1) for name in ("kept", "macs_kept"))
        times = (_show(found["milliseconds"], 3), *(_show(found[name], 2) for name in ("speed_up", "over_best_engine")))
        body.append((row.name, *_rate_cells(score, rate), *shares, _show(found["bytes"] / 1e3, 0), *times))
    head = ("network", "accuracy or WER", "", "weights, %", "work, %", "kB", "ms", "times faster", "than best engine")
    return _table(head, body) if body else ""


def _compared(check: dict[str, Any]) -> tuple[str, str, str]:
    """Return the WER and the real-time factor of a model and its export, with the differing hypotheses between."""
    contestants = [figures for figures in check.values() if isinstance(figures, dict)]  # the model comes first
    wer, factor = (
        " → ".join(_show(figures[name], decimals) for figures in contestants)
        for name, decimals in (("wer", 2), ("real_time_factor", 4))
    )
    return wer, str(check["utterances"] - check["same"]), factor


def _rate_cells(score: dict[str, Any], rate: str) -> tuple[str, str]:
    """Return the WER or DER and its interval; over seeds the mean with its standard deviation, and the range."""
    mean = f"**{_show(score[rate], 2)}**"
    if "seeds" in score:
        rates = [seed[rate] for seed in score["seeds"]]
        return f"{mean} ± {score[f'{rate}_spread']:.2f}", f"{min(rates):.2f}–{max(rates):.2f} ({len(rates)} seeds)"
    interval = score["wer_interval" if rate == "wer" else "interval"]
    return mean, "–".join(f"{bound:.2f}" for bound in interval) if interval else NONE


def _latency_table(rows: dict[str, Row], measures: dict[str, dict[str, Any]]) -> str:
    """Return what was scored as streams; empty if nothing was."""
    body = []
    for key, row in rows.items():
        score = measures[key]
        if not (latency := score.get("latency")):
            continue
        chunk = [_show(score["decode"].get(name), 0) for name in ("chunk_size", "lookahead")]
        spreads = [_spread(latency[name]) for name in ("first_partial", "emission", "token", "final")]
        cells = (row.name, *chunk, f"**{_show(score['wer'], 2)}**", *spreads, _show(latency["revised"], 1))
        body.append((*cells, _show(score["last_words"]["deleted"], 0), _real_time_factor(score["decode"])))
    head = ("set", "chunk", "lookahead", "WER", "first words", "each word", "its last token", "final text")
    return _table((*head, "words revised, %", "last words deleted", "real-time factor"), body) if body else ""


def _spread(spread: dict[str, float | None]) -> str:
    return f"{_show(spread['median'], 2)} ({_show(spread['p90'], 2)})"


def _comparison_table(rows: dict[str, Row], measures: dict[str, dict[str, Any]]) -> str:
    """Return how far each row is from the baseline that it was scored against; empty if none was."""
    names = {row.dirs[0]: row.name for row in rows.values() if len(row.dirs) == 1}
    body = []
    for key, row in rows.items():
        compared = measures[key].get("baseline")
        if "difference" not in (compared or {}) or "seeds" in measures[key]:
            continue
        folder = Path(compared["hypotheses"]).parent
        against = next((name for dir, name in names.items() if folder.match(dir)), str(folder))
        low, high = compared["interval"]
        interval, p = f"{low:+.2f} … {high:+.2f}", f"{compared['p_value']:.2g}"
        counts = " / ".join(str(compared[name]) for name in ("wins", "ties", "losses") if name in compared)
        body.append((row.name, against, f"{compared['difference']:+.2f}", interval, p, counts))
    head = ("set", "against", "difference in points", "95% interval", "p (matched pairs)", "meetings won / tied / lost")
    shown = len(head) - (not any(counts for *_, counts in body))
    return _table(head[:shown], [line[:shown] for line in body]) if body else ""


def _claim_table(claims: list[Claim], measures: dict[str, dict[str, Any]]) -> str:
    body = []
    for claim in claims:
        value = evaluate(claim.value, measures)
        targets = [f"at most {claim.at_most:g}"] if claim.at_most is not None else []
        targets += [f"at least {claim.at_least:g}"] if claim.at_least is not None else []
        verdict = NONE if not targets else "met" if is_met(claim, value) else "**not met**"
        body.append((claim.claim, claim.paper, ", ".join(targets) or NONE, _show(value), verdict))
    return _table(("claim", "paper", "target", "measured", ""), body)


def _training_table(measures: dict[str, dict[str, Any]]) -> str:
    each = _each(measures)
    trained = {measure["train"]["experiment"]: measure["train"] for measure in each if measure["train"]}
    body = []
    for name, train in trained.items():
        memory, seconds = (train.get(key) for key in ("peak_memory_bytes", "seconds"))
        megabytes = None if memory is None else memory / 1e6
        minutes = None if seconds is None else seconds / 60
        body.append((name, _parameters(train), _show(megabytes, 0), _show(train.get("hours"), 2), _show(minutes, 1)))
    head = ("experiment", "parameters", "peak memory, MB", "hours of audio", "minutes of training")
    return _table(head, body) if body else ""


def _real_time_factor(run: dict[str, Any]) -> str:
    """Return the seconds of work for a second of audio, of `decode.json` or `diarise.json`."""
    threads = run.get("threads")
    note = f" ({threads} thread{'s' * (threads != 1)})" if threads else ""
    factor = run.get("real_time_factor", run["seconds"] / run["duration"] if run.get("duration") else None)
    return _show(factor, 3) + note


def _parameters(train: dict[str, Any]) -> str:
    return _show(train.get("parameters"), 0)


def _commands(measures: dict[str, dict[str, Any]]) -> str:
    """Return each command once, training before decoding before scoring."""
    rows = _each(measures)
    commands = [row[stage].get("command") for stage in ("train", *RUNS) for row in rows]
    commands += [row.get("command") for row in rows]
    return "\n".join(dict.fromkeys(command for command in commands if command))


def _each(measures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the measures of all rows, each seed by itself."""
    return [one for measure in measures.values() for one in measure.get("seeds", [measure])]


def _show(value: float | None, decimals: int | None = None) -> str:
    """Format a number; without `decimals`, three significant digits at least and never less than the units."""
    if value is None:
        return NONE
    if decimals is None:
        decimals = 0 if abs(value) >= 100 else 2 if abs(value) >= 0.1 else 4
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # no -0.00


def _table(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content
