"""The training loop, for every model."""

import logging
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lhotse import CutSet
from torch import Tensor, nn

from asrkit.errors import InputError
from asrkit.models.checkpoint import save_checkpoint
from asrkit.training.config import TrainingConfig
from asrkit.training.distributed import Processes, processes
from asrkit.training.monitor import Monitor, write_summary
from asrkit.training.optimisers import build_optimiser
from asrkit.training.schedules import learning_rate
from asrkit.training.signals import StopSignal
from asrkit.training.state import (
    Checkpoints,
    Hook,
    Progress,
    TrainingState,
    averaged_copy,
    flat_gradient,
    seed_everything,
    update_average,
)

log = logging.getLogger(__name__)

# oneDNN compiles a kernel for each shape and forgets all but the last 1,024; it reads this when it is first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

MOST_SKIPPED_STEPS = 5  # in a row; more mean that the weights or the data are beyond repair


class Batch(Protocol):
    """What the loop needs of a batch; the rest is between the data and the model."""

    hours: float
    cuts: Any

    def to(self, device: torch.device) -> "Batch": ...


Seen = tuple[Batch, dict[str, float]]  # a batch and its losses


class Loader(Protocol):
    """Batches dealt out in turn: process r of W gets batches r, r + W, r + 2W, … of the epoch."""

    hours: float
    """Audio of one epoch, over all processes."""

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """Yield this process's batches of an epoch, always the same for the same number, without the first `skip`."""


def train(
    model: nn.Module,
    train_data: Loader,
    valid_data: Loader | None,
    config: TrainingConfig,
    folder: Path,
    hooks: Sequence[Hook] = (),
) -> None:
    """Train `model` and leave the best running average in `folder/model.pt`; go on if a checkpoint is there.

    `model(batch, hours)` returns named losses, each a sum over the batch: "loss" is minimised after division by
    "weight", the number of labels; `hours` is the audio seen so far. The gradient of a step is the sum over
    `config.accumulation` batches of each process divided by their labels, so the same batches give the same step
    however they are spread over processes. SIGTERM and Ctrl-C end the run (SystemExit) after saving.

    Raises:
        InputError: a file cannot be written, the checkpoint found is of another model, the training data are empty,
            or the loss is not finite many times in a row.
    """
    with processes() as group:
        model.to(group.device).train()
        group.copy_from_first(model)
        averaged, optimiser = averaged_copy(model), build_optimiser(model, config)
        state = TrainingState(model, averaged, optimiser, flat_gradient(model))
        checkpoints = Checkpoints(folder, config.keep_best, hooks, writes=group.first)
        checkpoints.restore(state)
        progress = state.progress
        summary = folder / "train.json"
        if _finished(progress, config) and summary.exists():
            log.info("%s: training is complete", folder)
            return
        total = config.steps or config.epochs * train_data.hours
        start = time.perf_counter() - progress.seconds
        sums: Counter[str] = Counter()  # this process's losses since the last record
        stopped = False
        with StopSignal() as stop, Monitor(folder, progress, total, bool(config.steps), active=group.first) as monitor:
            validate = partial(_validate, state, valid_data, config, group, monitor, checkpoints)
            while not (stopped or _finished(progress, config)):
                seed_everything(config.seed, progress.epoch)
                batches = iter(train_data.epoch(progress.epoch, skip=group.share(progress.batches)))
                while not (stopped or _finished(progress, config)):
                    seen = _accumulate(state, batches, config, group)
                    count, hours, weight, loss = group.sums(_totals(seen))
                    if count == 0:
                        _end_epoch(progress)
                        if not config.validate_every:
                            validate()
                        checkpoints.save(state)
                        break

                    progress.step += 1
                    progress.batches += int(count)
                    progress.hours += hours
                    rate = learning_rate(config, progress.hours, _done(progress, config) / total)
                    norm = _update(state, weight, rate, config, group, hooks) if math.isfinite(loss) else loss
                    if math.isfinite(norm):
                        window = config.average * progress.hours
                        update_average(state.averaged, model, min(1.0, hours / window) if window else 1.0)
                        progress.skipped = 0
                        for _, losses in seen:
                            sums.update(losses)
                    else:
                        _skip(state, _to_blame(seen, loss), folder, group)

                    progress.seconds = time.perf_counter() - start
                    monitor.show(progress, loss / weight if weight else math.nan)
                    if progress.step % config.log_every == 0:
                        losses = _per_label(group.named_sums(sums))
                        monitor.record(progress, "train", {**losses, "lr": rate, "gradient_norm": norm})
                        sums.clear()
                    if config.validate_every and progress.step % config.validate_every == 0:
                        validate()
                        checkpoints.save(state)
                    elif progress.step % config.save_every == 0:
                        checkpoints.save(state)
                    stopped = group.any(stop.received)
            if not stopped:
                validate()
                progress.seconds = time.perf_counter() - start
                if group.first:
                    write_summary(summary, state, group)
            checkpoints.save(state)
        if stopped:
            log.warning("stopped at step %d; the same command goes on from there", progress.step)
            raise SystemExit(128 + (stop.received or signal.SIGTERM))


def _done(progress: Progress, config: TrainingConfig) -> float:
    """Return how much of the training is done, in steps if `config.steps` ends it, else in hours."""
    return progress.step if config.steps else progress.hours


def _finished(progress: Progress, config: TrainingConfig) -> bool:
    return progress.step >= config.steps if config.steps else progress.epoch >= config.epochs


def _accumulate(state: TrainingState, batches: Iterator[Batch], config: TrainingConfig, group: Processes) -> list[Seen]:
    """Add the gradients of the next batches, fewer at the end of an epoch; return these with their losses."""
    state.gradient.zero_()
    seen = []
    for index in range(config.accumulation):
        seed_everything(config.seed, state.progress.step, index * group.world + group.rank)
        batch = next(batches, None)
        if batch is None:
            break
        batch = batch.to(group.device)
        with torch.autocast(group.device.type, torch.bfloat16, enabled=config.bf16):
            losses = state.model(batch, state.progress.hours)
        losses["loss"].backward()
        seen.append((batch, {name: torch.as_tensor(value).detach() for name, value in losses.items()}))
    # Numbers only now: reading one waits for the device, which by now has all of the step's work.
    return [(batch, {name: float(value) for name, value in losses.items()}) for batch, losses in seen]


def _update(
    state: TrainingState,
    weight: float,
    rate: float,
    config: TrainingConfig,
    group: Processes,
    hooks: Sequence[Hook],
) -> float:
    """Take one optimiser step with the gradient of `weight` labels, and return its norm; none if that is not finite.

    One explicit sum over the processes instead of DistributedDataParallel: that divides by processes, not by labels,
    needs care with accumulation, and waits for ever when one process runs out of batches first.
    """
    group.add(state.gradient)
    state.gradient.div_(weight)
    norm = float(torch.linalg.vector_norm(state.gradient))
    if not math.isfinite(norm):
        return norm
    if config.optimiser == "adamw" and norm > config.clip_norm:  # ScaledAdam shortens by a measure of its own
        state.gradient.mul_(config.clip_norm / norm)
    seed_everything(config.seed, state.progress.step, config.accumulation * group.world)
    for hook in hooks:
        hook.before_step(state)
    for parameters in state.optimiser.param_groups:
        parameters["lr"] = rate
    state.optimiser.step()
    for hook in hooks:
        hook.after_step(state)
    return norm


def _totals(seen: list[Seen]) -> tuple[int, float, float, float]:
    """Return the number of batches, their hours, their labels and their loss."""
    hours = sum(batch.hours for batch, _ in seen)
    weight = sum(losses["weight"] for _, losses in seen)
    return len(seen), hours, weight, sum(losses["loss"] for _, losses in seen)


def _per_label(sums: dict[str, float]) -> dict[str, float]:
    return {name: value / sums["weight"] for name, value in sums.items() if name != "weight" and sums["weight"]}


def _end_epoch(progress: Progress) -> None:
    if progress.batches == 0:
        raise InputError("training data: no batches; are all utterances filtered out?")
    progress.epoch += 1
    progress.batches = 0


@torch.no_grad()
def _validate(
    state: TrainingState,
    valid_data: Loader | None,
    config: TrainingConfig,
    group: Processes,
    monitor: Monitor,
    checkpoints: Checkpoints,
) -> None:
    """Record the averaged model's losses on the validation data, once a step, and keep it if it is among the best."""
    progress = state.progress
    if valid_data is None or progress.validated == progress.step:
        return
    sums: Counter[str] = Counter()
    for batch in valid_data.epoch(0):
        with torch.autocast(group.device.type, torch.bfloat16, enabled=config.bf16):
            losses = state.averaged(batch.to(group.device), progress.hours)
        sums.update({name: float(value) for name, value in losses.items()})
    losses = _per_label(group.named_sums(sums))
    if not losses:
        raise InputError("validation data: no batches; are all utterances filtered out?")
    progress.validated = progress.step
    monitor.record(progress, "valid", losses)
    checkpoints.save_if_best(state, losses["loss"])


def _to_blame(seen: list[Seen], loss: float) -> list[Batch]:
    """Return the batches whose loss is not finite; all of them if only the gradient of the step is not."""
    return [batch for batch, losses in seen if math.isfinite(loss) or not math.isfinite(losses["loss"])]


def _skip(state: TrainingState, batches: list[Batch], folder: Path, group: Processes) -> None:
    """Note a step left out because its loss or gradient was not finite; save the batches to be looked at.

    `bad_batches/step-<n>.pt` has the tensors and cut ids, `step-<n>.jsonl.gz` the cuts.

    Raises:
        InputError: it was one too many in a row.
    """
    progress = state.progress
    progress.skipped += 1
    name = f"step-{progress.step}" if group.first else f"step-{progress.step}-process-{group.rank}"
    file = folder / "bad_batches" / f"{name}.pt"
    if batches:
        save_checkpoint({"batches": [_contents(batch) for batch in batches]}, file)
        CutSet.from_cuts(cut for batch in batches for cut in batch.cuts).to_file(file.with_suffix(".jsonl.gz"))
        log.warning("step %d skipped: loss or gradient not finite; batch saved to %s", progress.step, file)
    if progress.skipped == MOST_SKIPPED_STEPS:
        raise InputError(
            f"{file.parent}: loss or gradient not finite in {MOST_SKIPPED_STEPS} steps in a row; "
            "look at the batches saved there or lower learning_rate"
        )


def _contents(batch: Batch) -> dict[str, Any]:
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return {"ids": [cut.id for cut in batch.cuts], **tensors}
