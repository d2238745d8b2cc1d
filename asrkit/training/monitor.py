"""What is seen of a training run: progress bar, `log.jsonl`, TensorBoard, and `train.json` at the end."""

import json
import math
import resource
import shlex
import sys
from pathlib import Path

import torch

from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.progress import progress_bar
from asrkit.training.distributed import Processes
from asrkit.training.state import Progress, TrainingState


class Monitor:
    """Shows and records progress; in processes other than the first (`active` false) it does nothing.

    `log.jsonl` has a record a line: step, epoch, hours, seconds, split ("train" or "valid"), lr, and "loss" and
    every other named loss per label; of the training also the gradient norm.
    """

    def __init__(self, folder: Path, progress: Progress, total: float, in_steps: bool, active: bool):
        self.active = active
        self.in_steps = in_steps
        self.start = progress.hours, progress.seconds
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # half a second to import

        self.file = folder / "log.jsonl"
        _forget_after(self.file, progress.step)
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=progress.step + 1)
        self.bar = progress_bar(round(total, 2), "train", "step" if in_steps else "h", initial=self._done(progress))

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.active:
            self.bar.close()
            self.writer.close()

    def show(self, progress: Progress, loss: float) -> None:
        """Redraw the bar: how far, the loss per label, and how many times faster than real time."""
        if not self.active:
            return
        hours, seconds = progress.hours - self.start[0], progress.seconds - self.start[1]
        speed = f"{hours * 3600 / seconds:.0f}x real time" if seconds else ""
        self.bar.set_postfix_str(f"epoch {progress.epoch}, loss {loss:.4g}, {speed}", refresh=False)
        self.bar.n = self._done(progress)
        self.bar.update(0)

    def record(self, progress: Progress, split: str, values: dict[str, float]) -> None:
        """Add a record; `values` go to TensorBoard as `<split>/<name>`, and to the log as null where not finite.

        Raises:
            InputError: the log cannot be written.
        """
        if not self.active:
            return
        position = {"step": progress.step, "epoch": progress.epoch}
        times = {"hours": progress.hours, "seconds": progress.seconds}
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**position, **times, "split": split, **numbers}) + "\n")
            for name, value in {**values, **times}.items():
                self.writer.add_scalar(f"{split}/{name}", value, progress.step)
        except OSError as error:
            raise InputError(f"{self.file}: cannot be written: {error.strerror}") from error

    def _done(self, progress: Progress) -> float:
        return progress.step if self.in_steps else round(progress.hours, 2)


def _forget_after(file: Path, step: int) -> None:
    """Drop the records that a killed run wrote after its last checkpoint: they will be written again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # the line that the killed run was writing
            continue
    with atomic_write(file) as out:
        out.writelines(kept)


def write_summary(file: Path, state: TrainingState, group: Processes) -> None:
    """Write what the training took, memory being the peak of this process (of its GPU, where it has one)."""
    progress = state.progress
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if group.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(group.device)
    summary = {
        "command": shlex.join(["asrkit", *sys.argv[1:]]),
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "steps": progress.step,
        "epochs": progress.epoch,
        "hours": progress.hours,
        "seconds": progress.seconds,
        "peak_memory_bytes": peak,
        "device": group.device.type,
        "processes": group.world,
        "best_loss": progress.best[0][0] if progress.best else None,
        "best_step": progress.best[0][1] if progress.best else None,
    }
    with atomic_write(file) as out:
        json.dump(summary, out, indent=2)
        out.write("\n")
