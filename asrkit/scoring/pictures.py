"""Pictures of a recipe: learning curves, an alignment over a spectrogram, weights, latencies, who spoke when and where.
Arrays in, PNG out.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from asrkit.files import atomic_write
from asrkit.types import Hypothesis, Segment, Tracks, Word

# Okabe and Ito's palette, told apart under every common colour blindness; black is kept for text.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
LOSS_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
HATCHES = ("", "///", "...", "xx")  # tell apart what has the same colour, beyond six
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
TOKEN_ROWS = 3  # neighbouring tokens take turns on so many lines, so that their names do not overlap
TRUE_TRACK = {"color": "black", "linewidth": 1.1, "linestyle": (0, (4, 3))}


def learning_curve(records: Sequence[dict[str, Any]]) -> Figure:
    """Draw the losses per label and the learning rate over hours of audio.

    Args:
        records: `log.jsonl` of an experiment: "hours", "split" ("train" or "valid"), "loss", other named losses, "lr".
            The named losses drawn are those of the validation, where nothing but losses is recorded.
    """
    valid = [record for record in records if record["split"] == "valid"]
    train = [record for record in records if record["split"] == "train"]
    position = {"step", "epoch", "hours", "seconds", "split", "lr"}
    names = sorted(
        {name for record in valid or train[:1] for name in record} - position, key=lambda n: (n != "loss", n)
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        for name, colour in zip(names, LOSS_COLOURS, strict=False):
            _curve(losses, train, name, color=colour, alpha=0.45, linewidth=1, label=f"{name}, training")
            _curve(
                losses,
                valid,
                name,
                color=colour,
                linewidth=1.8,
                marker="o",
                markersize=3.5,
                label=f"{name}, validation",
            )
        losses.set_yscale("log")
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_locator(NullLocator())
        losses.set_ylabel("loss per label (nats)")
        losses.legend(ncols=2, fontsize=8)
        _curve(rates, train, "lr", color="black", linewidth=1.2)
        rates.set_ylabel("learning rate")
        rates.set_ylim(bottom=0)
        rates.set_xlabel("hours of audio seen in training")
    return figure


def alignment(
    features: np.ndarray,
    frame_shift: float,
    words: Sequence[Word],
    hyp: Hypothesis,
    title: str,
    band: tuple[float, float],
) -> Figure:
    """Draw a log-mel spectrogram with the reference words above and the hypothesis below, at its emission times.

    Args:
        features: (T, D) log-mel energies.
        frame_shift: seconds between frames.
        words: reference words with their times (seconds).
        hyp: the hypothesis; its tokens are drawn at `token_times`.
        title: usually the utterance.
        band: lowest and highest frequency (Hz) of the filters.
    """
    seconds = len(features) * frame_shift
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(min(20.0, max(7.0, 2.2 * seconds)), 4.2), layout="constrained")
        above, spectrogram, below = figure.subplots(3, 1, sharex=True, height_ratios=(0.7, 4, 1.6))
        low, high = np.percentile(features, [2, 99.5])  # digital silence would otherwise take most of the colours
        spectrogram.imshow(
            features.T,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, features.shape[1]),
            cmap="Greys",
            vmin=low,
            vmax=high,
        )
        _frequency_axis(spectrogram, features.shape[1], band)
        _words(above, spectrogram, words)
        _tokens(below, spectrogram, hyp)
        below.set_xlim(0, seconds)
        below.set_xlabel("time (s)")
        above.set_title(title, fontsize=10, loc="left")
    return figure


def weight_curves(trials: Sequence[tuple[dict[str, float], float]], best: dict[str, float]) -> Figure:
    """Draw the word error rate over each weight, the others as in `best`, which is marked.

    Args:
        trials: the points tried, each weight's name -> value, and their word error rates (percent).
        best: the weights chosen, one of the points.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(best) + 0.8, 2.6), layout="constrained")
        plots = figure.subplots(1, len(best), sharey=True, squeeze=False)[0]
        for axes, name in zip(plots, best, strict=True):
            line = sorted((point[name], rate) for point, rate in trials if {**point, name: best[name]} == best)
            axes.plot(*zip(*line, strict=True), color=BLUE, marker="o", markersize=3.5, linewidth=1.5)
            axes.plot(best[name], dict(line)[best[name]], color=VERMILION, marker="o", markersize=7)
            axes.set_xlabel(f"weight of {name}")
        plots[0].set_ylabel("word error rate (%)")
    return figure


def latency_curves(
    streamed: Mapping[str, Sequence[tuple[float, float, Mapping[str, float]]]], whole: Mapping[str, float]
) -> Figure:
    """Draw the word error rate over the delay from a word's end until it stands: medians, and a bar to the 90th
    percentile.

    Args:
        streamed: test set -> (chunk in seconds, word error rate in percent, spread of the delay in seconds), in the
            order of the line.
        whole: test set -> word error rate of whole utterances, where known.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for number, ((name, points), colour) in enumerate(zip(streamed.items(), LOSS_COLOURS, strict=False)):
            medians, rates = [delay["median"] for _, _, delay in points], [rate for _, rate, _ in points]
            axes.plot(medians, rates, color=colour, marker="o", markersize=6, linewidth=1.8, label=name)
            axes.hlines(rates, medians, [delay["p90"] for _, _, delay in points], color=colour, alpha=0.45, linewidth=3)
            for chunk, rate, delay in points:
                place, beside = (delay["median"], rate), (4, (5, -12)[number % 2])
                axes.annotate(f"{chunk:.2f} s", place, beside, textcoords="offset points", color=colour, fontsize=8)
            if name in whole:
                axes.axhline(whole[name], color=colour, linestyle=(0, (4, 3)), linewidth=1.2, label=f"{name}, whole")
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds of audio from the end of a word until it stands: median, bar to the 90th percentile")
        axes.set_ylabel("word error rate (%)")
        axes.legend()
    return figure


def speaker_timeline(
    refs: Sequence[Segment],
    hyps: Sequence[Segment],
    matches: Mapping[str, str],
    tracks: Tracks | None = None,
    true_tracks: Tracks | None = None,
    observed: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Draw when each speaker spoke, in the reference and as found, and where, over time.

    Args:
        refs: reference segments of one recording.
        hyps: those that were found.
        matches: speaker found -> speaker of the reference; they share a row and a colour.
        tracks: where the speakers were found.
        true_tracks: where they were.
        observed: (N,) seconds and (N,) azimuths in radians, single observations.
    """
    rows = list(dict.fromkeys(("reference", s.speaker) for s in sorted(refs, key=lambda s: s.start)))
    found = dict.fromkeys(s.speaker for s in sorted(hyps, key=lambda s: s.start))
    row_of = {name: ("reference", matches[name]) if name in matches else ("found", name) for name in found}
    rows += [row for row in row_of.values() if row not in rows]
    colours = {row: LOSS_COLOURS[number % len(LOSS_COLOURS)] for number, row in enumerate(rows)}
    labels = {row: [row[1]] if row[0] == "reference" else [] for row in rows}
    for name, row in row_of.items():
        labels[row].append(f"found: {name}")
    with_azimuths = any(what is not None for what in (tracks, true_tracks, observed))
    heights = (0.45 * len(rows) + 0.4, 2.6)[: 1 + with_azimuths]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, sum(heights) + 0.7), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        _turns(axes[0], [(("reference", s.speaker), s) for s in refs], colours, above=0.38, alpha=0.45)
        _turns(axes[0], [(row_of[s.speaker], s) for s in hyps], colours, above=0.0, alpha=1.0)
        axes[0].set_yticks(range(len(rows)), ["\n".join(labels[row]) for row in rows])
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        axes[0].grid(axis="y", visible=False)
        axes[0].set_title("light above: reference; full below: found", fontsize=9, loc="left")
        if with_azimuths:
            if observed is not None:
                axes[1].plot(observed[0], np.degrees(observed[1]), ".", color="0.6", markersize=2.5)
            for name, values in (tracks.azimuths if tracks else {}).items():
                _azimuths(axes[1], values, tracks.step, color=colours.get(row_of.get(name), "0.4"), linewidth=2)
            for values in (true_tracks.azimuths if true_tracks else {}).values():
                _azimuths(axes[1], values, true_tracks.step, **TRUE_TRACK)
            _azimuth_axis(axes[1], observed, tracks, true_tracks)
        axes[-1].set_xlabel("time (s)")
        axes[-1].set_xlim(0, max([s.end for s in [*refs, *hyps]], default=1.0))
    return figure


def condition_bars(rates: Mapping[str, Mapping[str, tuple[float, tuple[float, float] | None]]]) -> Figure:
    """Draw the diarisation error rate of methods under several conditions, with its 95% intervals.

    Args:
        rates: method -> condition -> DER and its interval, percent.
    """
    conditions = list(dict.fromkeys(condition for each in rates.values() for condition in each))
    width = 0.84 / len(rates)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 0.34 * len(rates) * len(conditions) + 1.5), 4), layout="constrained")
        axes = figure.subplots()
        for number, (method, each) in enumerate(rates.items()):
            places = np.array([conditions.index(condition) for condition in each]) + (number + 0.5) * width - 0.42
            values = np.array([rate for rate, _ in each.values()])
            bounds = np.array([interval or (rate, rate) for rate, interval in each.values()])
            hatch, colour = divmod(number, len(LOSS_COLOURS))
            style = {"facecolor": LOSS_COLOURS[colour], "hatch": HATCHES[hatch % len(HATCHES)], "edgecolor": "white"}
            axes.bar(places, values, 0.92 * width, label=method, linewidth=0, **style)
            axes.errorbar(places, values, np.abs(bounds.T - values), fmt="none", ecolor="0.25", elinewidth=1, capsize=2)
            for place, value, top in zip(places, values, bounds[:, 1], strict=True):
                axes.annotate(f"{value:.1f}", (place, top), (0, 2), textcoords="offset points", ha="center", fontsize=7)
        axes.set_xticks(range(len(conditions)), conditions)
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.02, y=0.08)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("diarisation error rate (%), 95% interval")
        figure.legend(loc="outside upper left", ncols=4)
    return figure


def save_picture(figure: Figure, file: Path | str) -> None:
    """Write a PNG atomically; the same figure gives the same bytes."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130, metadata={"Software": None})
    with atomic_write(file, "wb") as out:
        out.write(image.getvalue())


def _curve(axes: Axes, records: Sequence[dict[str, Any]], name: str, **style: Any) -> None:
    points = [(record["hours"], record[name]) for record in records if record.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _turns(
    axes: Axes, turns: Sequence[tuple[Any, Segment]], colours: Mapping[Any, str], above: float, alpha: float
) -> None:
    """Draw bars that start `above` the middle of their row; the axis points down."""
    for number, (row, colour) in enumerate(colours.items()):
        spans = [(segment.start, segment.end - segment.start) for own, segment in turns if own == row]
        axes.broken_barh(spans, (number - above, 0.36), color=colour, alpha=alpha, linewidth=0)


def _azimuths(axes: Axes, values: Sequence[float], step: float, **style: Any) -> None:
    """Draw a track in degrees, broken where it goes through the rear."""
    degrees = np.degrees((np.asarray(values, float) + np.pi) % (2 * np.pi) - np.pi)
    rear = np.flatnonzero(np.abs(np.diff(degrees)) > 180) + 1
    axes.plot(np.insert(step * np.arange(len(degrees)), rear, np.nan), np.insert(degrees, rear, np.nan), **style)


def _azimuth_axis(axes: Axes, *shown: Any) -> None:
    """Label the axis, and those of observations, tracks and true tracks that are shown."""
    axes.set_ylim(-180, 180)
    axes.set_yticks(range(-180, 181, 90))
    axes.set_ylabel("azimuth (°)")
    styles = ({"marker": ".", "color": "0.6", "linestyle": ""}, {"color": "0.4", "linewidth": 2}, TRUE_TRACK)
    names = ("observed", "found", "true")
    what = [(name, style) for name, style, each in zip(names, styles, shown, strict=True) if each is not None]
    handles = [Line2D([], [], label=name, **style) for name, style in what]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)


def _frequency_axis(axes: Axes, bins: int, band: tuple[float, float]) -> None:
    """Label mel bins by frequency: the scale of Kaldi's filters, mel(f) = 1127 ln(1 + f / 700)."""
    low, high = (np.log1p(frequency / 700) for frequency in band)
    ticks = [frequency for frequency in (250, 500, 1000, 2000, 4000, 8000) if band[0] < frequency < band[1]]
    axes.set_yticks(
        [(np.log1p(tick / 700) - low) / (high - low) * bins for tick in ticks], [f"{t / 1000:g}" for t in ticks]
    )
    axes.set_ylabel("frequency (kHz)")


def _words(axes: Axes, spectrogram: Axes, words: Sequence[Word]) -> None:
    for number, word in enumerate(words):
        axes.axvspan(word.start, word.end, color=BLUE, alpha=(0.3, 0.15)[number % 2], linewidth=0)
        axes.text((word.start + word.end) / 2, 0.5, word.text, ha="center", va="center", fontsize=9)
        for time in (word.start, word.end):
            spectrogram.axvline(time, color=BLUE, linewidth=0.9)
    _as_band(axes, "reference\nwords", BLUE)


def _tokens(axes: Axes, spectrogram: Axes, hyp: Hypothesis) -> None:
    for number, (token, time) in enumerate(zip(hyp.tokens, hyp.token_times, strict=True)):
        height = 1 - (number % TOKEN_ROWS + 0.65) / TOKEN_ROWS
        axes.plot([time, time], [1, height + 0.1], color=VERMILION, linewidth=1)
        axes.text(time, height, token, ha="center", va="center", fontsize=9)
        spectrogram.axvline(time, color=VERMILION, linewidth=1.1, linestyle=(0, (2, 1.5)))
    _as_band(axes, "hypothesis\ntokens at\nemission", VERMILION)


def _as_band(axes: Axes, label: str, colour: str) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel(label, rotation=0, ha="right", va="center", color=colour)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(bottom=False)
