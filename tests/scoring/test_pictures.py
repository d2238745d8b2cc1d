import numpy as np
import pytest

from asrkit.scoring.pictures import alignment, latency_curves, learning_curve, save_picture, weight_curves
from asrkit.types import Hypothesis, Word

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
