"""The learning rate as a function of the audio seen, not of steps: batch size does not change it."""

import math

from asrkit.training.config import TrainingConfig

EDEN_START = 0.5  # Eden's warm-up begins at half the peak; the others' begins at zero


def learning_rate(config: TrainingConfig, hours: float, done: float) -> float:
    """Return the learning rate after `hours` of audio, `done` being the fraction of the training (0 to 1)."""
    start = EDEN_START if config.schedule == "eden" else 0.0
    warm_up = start + (1 - start) * min(1.0, hours / config.warm_up_hours) if config.warm_up_hours else 1.0
    if config.schedule == "eden":
        shape = eden(hours, *config.eden_hours)
    elif config.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    else:
        shape = 1.0
    return config.learning_rate * warm_up * shape


def eden(hours: float, first: float, second: float) -> float:
    """Eden's decay without its warm-up, 1 at the start (arXiv:2310.11230, "Eden schedule").

    The paper multiplies ((t² + a²) / a²)^-¼ over steps by the same over epochs; here both count hours of audio.
    """
    return ((hours / first) ** 2 + 1) ** -0.25 * ((hours / second) ** 2 + 1) ** -0.25
