"""RESULTS.md of a recipe: every figure read from the JSON files of its experiments, none written by hand.

The recipe's `results.yaml` says what is shown:

    title: Streaming transducer on mini
    text: What the reader should know before the figures.
    rows:                                     # one decoded set each; the key is its name in the claims
      seen: {name: "new sentences, training voices", dir: asr/test_seen}
      streaming: {name: "the same, streaming", dir: asr/test_seen_streaming}
    claims:
      - {claim: WER on new sentences, value: seen.wer, at_most: 5}
      - {claim: loss of streaming in points, value: streaming.wer - seen.wer, at_most: 1, paper: "0.4"}
      - {claim: no early-emission lock, value: seen.first_word.wer - seen.other_words.wer, at_most: 1}
    pictures: {pictures/curve.png: Learning curve}

`dir` is a folder of the experiments' folder with `score.json` and, if it was decoded by asrkit, `decode.json`;
`train.json` is taken from it or from the nearest folder above. A `value` is arithmetic (+ - * / and parentheses) over
`row.key`, where the keys are those of `score.json`, and `decode.key` and `train.key` for the other two; a name that is
no identifier stands in brackets, `seen.by.speaker["spk-1"].wer`. Without `at_most` or `at_least` a claim only shows
its value, beside the `paper`'s if given.
"""

import ast
import json
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrkit.errors import InputError

NONE = "–"  # shown where a figure does not exist
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@dataclass(frozen=True)
class Row:
    """One decoded set."""

    name: str
    dir: str


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
    """Return, for each row, its `score.json` with `decode.json` and `train.json` under those keys (empty if absent).

    Raises:
        InputError: a row has no `score.json`, or a file is no JSON object; names the file.
    """
    measures = {}
    for key, row in rows.items():
        folder = experiments / row.dir
        measures[key] = _read_json(folder / "score.json") | {"decode": {}, "train": {}}
        if (folder / "decode.json").exists():
            measures[key]["decode"] = _read_json(folder / "decode.json")
        for above in (Path(row.dir), *Path(row.dir).parents):
            if (experiments / above / "train.json").exists():
                measures[key]["train"] = _read_json(experiments / above / "train.json") | {"experiment": str(above)}
                break
    return measures


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
    parts = [f"# {results.title}", results.text.strip(), "Written by `asrkit results`. Rates are percent of words."]
    parts += ["## Word error rates", _wer_table(results.rows, measures)]
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
        counts = (str(score[name]) for name in ("words", "insertions", "deletions", "substitutions"))
        positions = (_show(score[name]["wer"], 2) for name in ("first_word", "other_words"))
        low, high = score["wer_interval"]
        cells = (row.name, f"**{_show(score['wer'], 2)}**", f"{low:.2f}–{high:.2f}", *counts, *positions)
        body.append((*cells, _real_time_factor(score["decode"]), _parameters(score["train"])))
    return _table((*head, "real-time factor", "parameters"), body)


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
    trained = {row["train"]["experiment"]: row["train"] for row in measures.values() if row["train"]}
    body = []
    for name, train in trained.items():
        memory, seconds = (train.get(key) for key in ("peak_memory_bytes", "seconds"))
        megabytes = None if memory is None else memory / 1e6
        minutes = None if seconds is None else seconds / 60
        body.append((name, _parameters(train), _show(megabytes, 0), _show(train.get("hours"), 2), _show(minutes, 1)))
    head = ("experiment", "parameters", "peak memory, MB", "hours of audio", "minutes of training")
    return _table(head, body) if body else ""


def _real_time_factor(decode: dict[str, Any]) -> str:
    threads = decode.get("threads")
    note = f" ({threads} thread{'s' * (threads != 1)})" if threads else ""
    return _show(decode.get("real_time_factor"), 3) + note


def _parameters(train: dict[str, Any]) -> str:
    return _show(train.get("parameters"), 0)


def _commands(measures: dict[str, dict[str, Any]]) -> str:
    """Return each command once, training before decoding before scoring."""
    rows = measures.values()
    commands = [row["train"].get("command") for row in rows] + [row["decode"].get("command") for row in rows]
    commands += [row.get("command") for row in rows]
    return "\n".join(dict.fromkeys(command for command in commands if command))


def _show(value: float | None, decimals: int | None = None) -> str:
    """Format a number; without `decimals`, three significant digits at least and never less than the units."""
    if value is None:
        return NONE
    if decimals is None:
        decimals = 0 if abs(value) >= 100 else 2 if abs(value) >= 0.1 else 4
    return f"{value:,.{decimals}f}"


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
