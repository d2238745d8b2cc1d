"""Training: one loop for every model, with its optimisers, schedules and checkpoints."""

from asrkit.training.config import TrainingConfig
from asrkit.training.loop import train
from asrkit.training.state import Hook, Progress, TrainingState

__all__ = ["Hook", "Progress", "TrainingConfig", "TrainingState", "train"]
