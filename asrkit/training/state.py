"""What a training run consists of at one moment, what is saved of it, and the hooks that may act on it."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from asrkit.errors import InputError
from asrkit.models.checkpoint import copy_weights, read_checkpoint, save_checkpoint, save_weights


@dataclass
class Progress:
    """How far the training is, counted over all processes."""

    step: int = 0
    epoch: int = 0
    batches: int = 0
    """Batches seen in this epoch."""
    hours: float = 0.0
    """Audio seen since the beginning."""
    seconds: float = 0.0
    """Wall time spent, earlier runs included."""
    skipped: int = 0
    """Steps skipped in a row because their loss was not finite."""
    validated: int = -1
    """Step of the last validation."""
    best: list[tuple[float, int]] = field(default_factory=list)
    """(validation loss, step) of the models kept, best first."""


@dataclass
class TrainingState:
    """The model being trained and its running average, which stays in evaluation mode."""

    model: nn.Module
    averaged: nn.Module
    optimiser: torch.optim.Optimizer
    gradient: Tensor
    """All gradients as one vector; the parameters' `.grad` are views of it."""
    progress: Progress = field(default_factory=Progress)


class Hook:
    """What other rooms may do inside the training loop; each method does nothing unless it is overridden.

    Random numbers drawn in `before_step` and `after_step` are the same in all processes. A run has at most one hook
    of a class: the class's name is the key of its part of the checkpoint.
    """

    def before_step(self, state: TrainingState) -> None:
        """Called when the gradients of a step are complete and clipped, before the optimiser moves."""

    def after_step(self, state: TrainingState) -> None:
        """Called when the optimiser has moved, before the running average follows."""

    def on_save(self, state: TrainingState) -> dict[str, Any]:
        """Called before a checkpoint is written; returns what `on_load` needs (tensors and plain values)."""
        return {}

    def on_load(self, saved: dict[str, Any]) -> None:
        """Called when training resumes, with what `on_save` returned."""


def averaged_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` to hold its running average."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, weight: float) -> None:
    """Move the average the fraction `weight` of its way towards the parameters of `model`; buffers are copied."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), weight)
    for ours, theirs in zip(averaged.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)


def flat_gradient(model: nn.Module) -> Tensor:
    """Return one vector whose parts are the gradients of `model` from now on (do not set them to None)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters), requires_grad=False)
    parts = flat.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return flat


def seed_everything(*position: int) -> None:
    """Make all random numbers a function of the position in training (seed, step, batch, …).

    Dropout and augmentation then are the same after a resume, and for any number of processes, with no generator
    state to be saved.
    """
    seed = int(numpy.random.SeedSequence(position).generate_state(1)[0])
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


class Checkpoints:
    """The files of a training run in its experiment directory.

    `model.pt`, the best averaged model so far, with which to decode; `checkpoints/step-<n>.pt`, the `keep_best` best
    averaged models; `checkpoints/last.pt`, all that is needed to go on. Each holds its averaged model as "model".
    """

    def __init__(self, folder: Path, keep_best: int, hooks: Sequence[Hook] = (), writes: bool = True):
        self.model_file = folder / "model.pt"
        self.folder = folder / "checkpoints"
        self.last = self.folder / "last.pt"
        self.keep_best = keep_best
        self.hooks = hooks
        self.writes = writes  # of several processes, one

    def save(self, state: TrainingState) -> None:
        """Write `last.pt`, and `model.pt` as long as nothing is validated.

        Raises:
            InputError: the disk is full, say; the older files are still there.
        """
        if not self.writes:
            return
        contents = {
            "model": state.averaged.state_dict(),
            "current": state.model.state_dict(),
            "optimiser": type(state.optimiser).__name__,
            "optimiser_state": state.optimiser.state_dict(),
            "progress": asdict(state.progress),
            "hooks": {type(hook).__name__: hook.on_save(state) for hook in self.hooks},
        }
        save_checkpoint(contents, self.last)
        if not state.progress.best:
            save_weights(state.averaged, self.model_file)
        self._clean(state.progress)

    def save_if_best(self, state: TrainingState, loss: float) -> None:
        """Keep the averaged model among the best ones if `loss`, its validation loss, is low enough."""
        candidate = (loss if math.isfinite(loss) else math.inf, state.progress.step)
        state.progress.best = sorted([*state.progress.best, candidate])[: self.keep_best]
        if self.writes and candidate in state.progress.best:
            save_weights(state.averaged, self._best(state.progress.step))
        if self.writes and candidate == state.progress.best[0]:
            save_weights(state.averaged, self.model_file)

    def restore(self, state: TrainingState) -> bool:
        """Bring `state` to where `last.pt` left it; return whether there was one.

        Raises:
            InputError: the checkpoint is damaged, of another model or of another optimiser.
        """
        if not self.last.exists():
            return False
        saved = read_checkpoint(self.last)
        if "current" not in saved:
            raise InputError(f"{self.last}: a model file, but not a checkpoint of training")
        if saved["optimiser"] != type(state.optimiser).__name__:
            raise InputError(f"{self.last}: trained with {saved['optimiser']}, not {type(state.optimiser).__name__}")
        copy_weights(state.model, saved["current"], self.last)
        copy_weights(state.averaged, saved["model"], self.last)
        state.optimiser.load_state_dict(saved["optimiser_state"])
        state.progress = Progress(**saved["progress"])
        for hook in self.hooks:
            if type(hook).__name__ in saved["hooks"]:
                hook.on_load(saved["hooks"][type(hook).__name__])
        return True

    def _best(self, step: int) -> Path:
        return self.folder / f"step-{step}.pt"

    def _clean(self, progress: Progress) -> None:
        """Remove models that are no longer among the best, and halves of files that a killed run left."""
        kept = {self._best(step) for _, step in progress.best}
        for file in [*self.folder.glob("step-*.pt"), *self.folder.glob(".*.pt.*")]:
            if file not in kept:
                file.unlink()
