import numpy as np
import pytest

from asrkit.scoring.pictures import (
    alignment,
    condition_bars,
    latency_curves,
    learning_curve,
    save_picture,
    speaker_timeline,
    weight_curves,
)
from asrkit.types import Hypothesis, Segment, Tracks, Word

RECORDS = [
    {"step": step, "hours": step / 10, "split": split, "loss": 2 / step, "ctc": 3 / step, "lr": 1e-3, **extra}
    for step in range(1, 20)
    for split, extra in (("train", {"gradient_norm": 40.0}), ("valid", {}))
]


def test_learning_curve_draws_losses_over_hours():
    losses, rates = learning_curve(RECORDS).axes
    labels = [text.get_text() for text in losses.get_legend().get_texts()]
    assert labels == ["loss, training", "loss, validation", "ctc, training", "ctc, validation"]
    hours, values = losses.lines[1].get_data()
    assert hours[0] == 0.1 and values[0] == 2.0
    assert "nats" in losses.get_ylabel() and "hours" in rates.get_xlabel()


def test_learning_curve_of_a_run_not_yet_validated():
    losses, _ = learning_curve([record for record in RECORDS if record["split"] == "train"]).axes
    assert any(label.get_text() == "loss, training" for label in losses.get_legend().get_texts())


def test_alignment_puts_words_and_tokens_at_their_times(tmp_path):
    hyp = Hypothesis(("▁a", "b"), (0.5, 1.25), (Word("ab", 0.5, 1.25),), 0.0)
    features = np.random.default_rng(0).normal(size=(200, 80))
    figure = alignment(features, 0.01, [Word("ab", 0.4, 1.3)], hyp, "utterance", (20, 7600))
    above, spectrogram, below = figure.axes
    assert above.texts[0].get_text() == "ab" and above.texts[0].get_position()[0] == pytest.approx(0.85)
    assert [text.get_position()[0] for text in below.texts] == [0.5, 1.25]
    assert below.get_xlim() == (0, 2.0)
    assert [label.get_text() for label in spectrogram.get_yticklabels()] == ["0.25", "0.5", "1", "2", "4"]
    save_picture(figure, tmp_path / "a.png")
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG") and len(first) > 10_000


def test_weight_curves_show_the_points_around_the_best():
    points = [({"lm": 0.2, "length": 0.0}, 9.0), ({"lm": 0.4, "length": 0.0}, 8.0), ({"lm": 0.2, "length": 0.5}, 7.0)]
    figure = weight_curves([*points, ({"lm": 0.4, "length": 0.5}, 6.0)], {"lm": 0.4, "length": 0.5})
    curves = {axes.get_xlabel(): axes.lines[0].get_xydata().tolist() for axes in figure.axes}
    assert curves == {"weight of lm": [[0.2, 7.0], [0.4, 6.0]], "weight of length": [[0.0, 8.0], [0.5, 6.0]]}


def test_latency_curves_draw_a_line_a_set():
    points = [(0.32, 5.0, {"median": 0.2, "p90": 0.4}), (1.28, 3.0, {"median": 0.7, "p90": 1.2})]
    figure = latency_curves({"test": points, "other": points[:1]}, {"test": 2.5})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["test", "test, whole", "other"]
    assert axes.lines[0].get_xydata().tolist() == [[0.2, 5.0], [0.7, 3.0]]
    assert [text.get_text() for text in axes.texts] == ["0.32 s", "1.28 s", "0.32 s"]
    bars = [segment.tolist() for segment in axes.collections[0].get_segments()]
    assert bars == [[[0.2, 5.0], [0.4, 5.0]], [[0.7, 3.0], [1.2, 3.0]]]


REFS = [Segment("m", 4, 6, "bob"), Segment("m", 0, 3, "ann")]
HYPS = [Segment("m", 0, 3.5, "1"), Segment("m", 4, 5, "2"), Segment("m", 5, 6, "ann")]


def bars(axes):
    """The (left, right, colour) of all bars, from the top."""
    found = [
        (box.y0, box.x0, box.x1, tuple(collection.get_facecolor()[0][:3]))
        for collection in axes.collections
        for box in (path.get_extents() for path in collection.get_paths())
    ]
    return [bar[1:] for bar in sorted(found)]


def test_speaker_timeline_has_a_row_a_speaker_and_one_for_who_is_not_there():
    (axes,) = speaker_timeline(REFS, HYPS, {"1": "ann", "2": "bob"}).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["ann\nfound: 1", "bob\nfound: 2", "found: ann"]
    spans = bars(axes)
    assert [span[:2] for span in spans] == [(0, 3), (0, 3.5), (4, 6), (4, 5), (5, 6)]
    colours = [span[2] for span in spans]
    assert colours[0] == colours[1] != colours[2] == colours[3] != colours[4]


def test_speaker_timeline_breaks_tracks_at_the_rear():
    found = Tracks("m", 1.0, {"1": [3.0, 3.1, -3.1, np.nan], "9": [0.0, 0.1]})
    true = Tracks("m", 1.0, {"ann": [3.0, 3.1, 3.2]})
    observed = np.array([0.5, 1.5]), np.array([3.0, -np.pi / 2])
    _, axes = speaker_timeline(REFS, HYPS, {"1": "ann"}, found, true, observed).axes
    dots, first, other, dashed = axes.lines
    assert dots.get_ydata() == pytest.approx(np.degrees([3.0, -np.pi / 2]))
    expected = np.degrees([3.0, 3.1, np.nan, -3.1, np.nan])
    assert first.get_ydata() == pytest.approx(expected, nan_ok=True)
    assert dashed.get_ydata() == pytest.approx(np.degrees([3.0, 3.1, np.nan, 3.2 - 2 * np.pi]), nan_ok=True)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["observed", "found", "true"]


def test_condition_bars_stand_in_groups():
    rates = {"a": {"still": (2.0, (1.0, 4.0)), "walk": (3.0, None)}, "b": {"walk": (5.0, (4.0, 6.0))}}
    figure = condition_bars(rates)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["still", "walk"]
    assert [(round(bar.get_x() + bar.get_width() / 2), bar.get_height()) for bar in axes.patches] == [
        (0, 2),
        (1, 3),
        (1, 5),
    ]
    whiskers = [segment for bars in axes.collections for segment in bars.get_segments()]
    assert [tuple(segment[:, 1]) for segment in whiskers] == [(1, 4), (3, 3), (4, 6)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    many = condition_bars({f"method {n}": {"still": (2.0, None)} for n in range(8)}).axes[0].patches
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in many}) == 8
