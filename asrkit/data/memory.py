"""A training that would run out of memory does so before its first step, and says on which batch."""

import logging
import re
from collections.abc import Sequence

import torch
from torch import nn

from asrkit.data.batching import Batch, BatchLoader
from asrkit.data.features import SILENCE, num_frames
from asrkit.errors import InputError

log = logging.getLogger(__name__)


def worst_batches(loader: BatchLoader) -> list[Batch]:
    """Return the batches of epoch 0 with the most frames, most labels, and most frames times labels, padding included.

    Their features are silence, as long as the slowest speed perturbation makes them; no audio is read.
    """
    batches = loader.plan(0)
    sizes = []
    for indices in batches:
        frames = len(indices) * max(_slowest_length(loader, index) for index in indices)
        labels = max(len(loader.tokens[index]) for index in indices)
        sizes.append((frames, len(indices) * labels, frames * labels))
    worst = {max(range(len(batches)), key=lambda number: sizes[number][measure]) for measure in range(3)}
    return [_silent_batch(loader, batches[number]) for number in sorted(worst)]


def probe(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Run `model` and its gradient on each batch; parameters, buffers and random states stay as they were.

    To be called under the autocast that training uses, and before there is an optimiser.

    Raises:
        InputError: the memory of the model's device is too small; names the batch and the options that help.
    """
    device = next(model.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for batch in batches:
        size = f"{len(batch)} utterances, {batch.features.shape[1]} frames, {batch.tokens.shape[1]} labels"
        log.info("memory probe: %s", size)  # where the kernel kills the process, this is the last word
        try:
            with torch.random.fork_rng():
                model(batch.to(device), hours=float("inf"))["loss"].backward()
        except (RuntimeError, MemoryError) as error:
            if not re.search("out of memory|not enough memory|allocate memory", str(error)):
                raise
            longest = max(batch.cuts, key=lambda cut: cut.duration)
            raise InputError(
                f"not enough memory for a batch of {size} (longest cut: {longest.id}, {longest.duration:.1f} s); "
                "lower batching.max_duration, or batching.max_length to leave out long cuts"
            ) from error
        finally:
            model.zero_grad(set_to_none=True)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _slowest_length(loader: BatchLoader, index: int) -> int:
    return num_frames(loader.cuts[index].duration / loader.slowest)


def _silent_batch(loader: BatchLoader, indices: list[int]) -> Batch:
    lens = torch.tensor([_slowest_length(loader, index) for index in indices])
    features = torch.full((len(indices), int(lens.max()), loader.features.num_mel_bins), SILENCE)
    return loader.assemble(indices, features, lens, (loader.slowest,) * len(indices))
