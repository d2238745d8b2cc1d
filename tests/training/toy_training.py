"""A toy model, its data, and a command: `python toy_training.py FOLDER KILL_AT_STEP [OPTION=VALUE …]`."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lhotse import CutSet, MonoCut
from torch import Tensor, nn

from asrkit.config import read_config
from asrkit.training import Hook, TrainingConfig, train

D, U, SIZE = 6, 3, 4  # features, targets, utterances of a batch
HOURS = 0.01  # of a batch


@dataclass
class ToyBatch:
    features: Tensor  # (N, D)
    targets: Tensor  # (N, U)
    cuts: CutSet
    hours: float = HOURS

    def to(self, device: torch.device) -> "ToyBatch":
        return replace(self, features=self.features.to(device), targets=self.targets.to(device))


@dataclass
class ToyData:
    """`batches` batches of a fixed linear map; process `rank` of `world` gets every world-th one."""

    batches: int = 13
    rank: int = 0
    world: int = 1
    bad: tuple[int, ...] = ()
    """Batches that hold a NaN."""

    @property
    def hours(self) -> float:
        return self.batches * HOURS

    def epoch(self, number: int, skip: int = 0):
        for index in list(range(self.rank, self.batches, self.world))[skip:]:
            yield self.batch(number, index)

    def batch(self, number: int, index: int) -> ToyBatch:
        draw = torch.Generator().manual_seed(1000 * number + index)
        size = SIZE + index % 3  # unequal batches, so that dividing by processes and by labels differ
        features = torch.randn(size, D, generator=draw)
        targets = features @ torch.linspace(-1, 1, D * U).view(D, U)
        if index in self.bad:
            features[0, 0] = torch.nan
        ids = [f"epoch{number}-batch{index}-{n}" for n in range(size)]
        return ToyBatch(features, targets, CutSet.from_cuts(MonoCut(i, 0.0, 1.0, 0) for i in ids))


class ToyModel(nn.Module):
    def __init__(self, hidden: int = 16, dropout: float = 0.2):
        super().__init__()
        self.first, self.second = nn.Linear(D, hidden), nn.Linear(hidden, U)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: ToyBatch, hours: float) -> dict[str, Tensor]:
        output = self.second(self.dropout(torch.tanh(self.first(batch.features))))
        square = (output - batch.targets).square().sum()
        size = self.first.weight.square().sum() * len(batch.features)
        return {"loss": square + 1e-3 * size, "square": square, "size": size, "weight": batch.targets.numel()}


@dataclass
class SignalAt(Hook):
    """Sends `number` to this very process after step `step`."""

    step: int
    number: int

    def after_step(self, state) -> None:
        if state.progress.step == self.step:
            os.kill(os.getpid(), self.number)


def toy_model(**options) -> ToyModel:
    torch.manual_seed(0)
    return ToyModel(**options)


def main() -> None:
    folder, kill_at, *options = sys.argv[1:]
    config = read_config(TrainingConfig, overrides=dict(option.split("=") for option in options))
    data = ToyData(rank=int(os.environ.get("RANK", 0)), world=int(os.environ.get("WORLD_SIZE", 1)))
    valid_data = ToyData(3, rank=data.rank, world=data.world)
    train(toy_model(), data, valid_data, config, Path(folder), [SignalAt(int(kill_at), signal.SIGKILL)])


if __name__ == "__main__":
    main()
