"""The learning rate follows hours of audio."""

import dataclasses

import pytest

from asrkit.config import read_config
from asrkit.errors import InputError
from asrkit.training import TrainingConfig
from asrkit.training.schedules import eden, learning_rate


def test_eden_is_the_published_formula():
    def published(t, e, a, b):
        return ((t**2 + a**2) / a**2) ** -0.25 * ((e**2 + b**2) / b**2) ** -0.25

    assert eden(0, 7, 9) == 1
    for hours in (0.5, 7, 400):
        assert eden(hours, 7, 9) == pytest.approx(published(hours, hours, 7, 9))
    config = TrainingConfig(schedule="eden", learning_rate=0.04, warm_up_hours=2, eden_hours=(7, 9))
    assert learning_rate(config, 0.0, 0) == pytest.approx(0.02)  # half the peak, as in the paper
    assert learning_rate(config, 1.0, 0) == pytest.approx(0.04 * 0.75 * published(1, 1, 7, 9))
    assert learning_rate(config, 50.0, 0) == pytest.approx(0.04 * published(50, 50, 7, 9))


def test_warm_up_and_cosine():
    config = TrainingConfig(learning_rate=1.0, warm_up_hours=2)
    assert learning_rate(config, 1.0, 0.0) == pytest.approx(0.5)
    assert learning_rate(config, 4.0, 0.5) == pytest.approx(0.5)
    assert learning_rate(config, 8.0, 1.0) == pytest.approx(0.0)
    assert learning_rate(config, 9.0, 1.2) == pytest.approx(0.0)  # more audio than foreseen: no second rise
    assert learning_rate(dataclasses.replace(config, warm_up_hours=0), 0.0, 0.0) == 1.0
    assert learning_rate(dataclasses.replace(config, schedule="constant"), 8.0, 1.0) == 1.0


def test_the_options_stay_few():
    assert len(dataclasses.fields(TrainingConfig)) <= 20


@pytest.mark.parametrize(
    "options, words",
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": "many"}, "epochs"),
        ({"optimiser": "sgd"}, "optimiser"),
        ({"accumulation": 0}, "accumulation must be above 0"),
        ({"warm_up_hours": -1.0}, "warm_up_hours must not be below 0"),
        ({"average": 1.5}, "average must be a fraction"),
        ({"eden_hours": [0.0, 1.0]}, "eden_hours must be above 0"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        read_config(TrainingConfig, overrides=options)
