"""The options of training."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. Lengths are hours of audio, so batch size and number of processes change no schedule."""

    epochs: int = 20
    """Passes over the training data."""
    steps: int = 0
    """Stop after this many optimiser steps instead (0: `epochs` decides)."""
    accumulation: int = 1
    """Batches of each process that make up one optimiser step."""
    optimiser: Literal["adamw", "scaled_adam"] = "adamw"
    """AdamW, or the ScaledAdam of the Zipformer paper (learning rate about 0.045)."""
    learning_rate: float = 2e-3
    """The peak learning rate."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices; vectors (biases, norms) are never decayed, and ScaledAdam decays nothing."""
    clip_norm: float = 2.0
    """Longest gradient: its norm with AdamW, a multiple of the median of the recent norms with ScaledAdam."""
    schedule: Literal["cosine", "eden", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine falls to zero at the end of training."""
    warm_up_hours: float = 1.0
    """Audio over which the learning rate grows linearly to its peak."""
    eden_hours: tuple[float, float] = (100.0, 100.0)
    """Eden's two time constants, in the paper given as steps and as epochs."""
    average: float = 0.05
    """The saved model is a running average over about this last fraction of the training (0: no averaging)."""
    bf16: bool = False
    """Compute in bfloat16 where autocast deems it safe; weights stay float32."""
    validate_every: int = 0
    """Steps between validations (0: after each epoch)."""
    save_every: int = 500
    """Steps between writes of `checkpoints/last.pt`; also written at each validation and at the end."""
    keep_best: int = 3
    """How many of the best validated models stay in `checkpoints/`."""
    log_every: int = 20
    """Steps between records in `log.jsonl` and TensorBoard."""
    seed: int = 0
    """Seed of everything random in training."""

    def __post_init__(self):
        positive = ("accumulation", "learning_rate", "clip_norm", "save_every", "keep_best", "log_every")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if min(self.eden_hours) <= 0:
            raise ValueError(f"eden_hours must be above 0, not {self.eden_hours}")
        for name in ("epochs", "steps", "warm_up_hours", "weight_decay", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be below 0, not {getattr(self, name)}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be a fraction from 0 to below 1, not {self.average}")
