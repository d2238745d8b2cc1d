"""The processes that train one model together, started by torchrun; one process when it is not."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from asrkit.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process's place (`rank`) among `world` processes, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, batches: int) -> int:
        """Return how many of the first `batches` batches are this process's, dealt out in turn."""
        return len(range(self.rank, batches, self.world))

    def copy_from_first(self, model: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.world > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def add(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over the processes."""
        if self.world > 1:
            distributed.all_reduce(tensor)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sum over the processes of each value."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.add(total)
        return total.tolist()

    def any(self, value: int) -> bool:
        """Return whether `value` is above zero in any process."""
        return self.sums([value])[0] > 0

    def named_sums(self, values: dict[str, float]) -> dict[str, float]:
        """Return the sum over the processes of each named value; a process may lack some or all of them."""
        parts = [values]
        if self.world > 1:
            parts = [{} for _ in range(self.world)]
            distributed.all_gather_object(parts, values)
        total: dict[str, float] = {}
        for part in parts:
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are, as torchrun's environment variables tell."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_device() -> torch.device:
    """Return the device that this process trains on: its own GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that torchrun started, as its environment variables describe them, and leave at the end.

    Raises:
        InputError: another process ended early (which says why itself).
    """
    (rank, world), device = rank_and_world(), own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, device)
    except RuntimeError as error:
        if "by peer" not in str(error):  # gloo's "Connection closed by peer" or "reset by peer"
            raise
        raise InputError("another process of this training ended; see its message") from error
    finally:
        if world > 1:
            distributed.destroy_process_group()
