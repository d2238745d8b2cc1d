"""Frame labels from the phone or word times that a manifest holds."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lhotse.cut import Cut
from torch import Tensor

from asrkit.data.features import FRAME_SHIFT, SUBSAMPLING
from asrkit.errors import InputError

SILENCE_LABEL = "<sil>"  # label 0: every frame that no unit covers
UNLABELLED = -100  # frames of cuts without times, and padding; cross-entropy ignores it


@dataclass(frozen=True)
class FrameLabels:
    """The units ("phone" or "word") of one alignment tier, numbered."""

    tier: str
    symbols: tuple[str, ...]

    def __call__(self, cut: Cut, frames: int, speed: float = 1.0) -> Tensor:
        """Return the label of the middle of each encoder frame, (frames,) int64.

        An encoder frame is `subsampling` feature frames; the audio was played `speed` times as fast. Units that were
        not there when the labels were numbered, as a rare phone of the validation data, stay unlabelled.
        """
        items = (cut.supervisions[0].alignment or {}).get(self.tier)
        if not items:
            return torch.full((frames,), UNLABELLED)
        index = {symbol: number for number, symbol in enumerate(self.symbols)}
        labels = torch.zeros(frames, dtype=torch.int64)
        seconds = SUBSAMPLING * FRAME_SHIFT * speed  # of the cut, an encoder frame
        for item in items:
            span = slice(max(0, round(item.start / seconds)), max(0, round(item.end / seconds)))
            labels[span] = index.get(item.symbol, UNLABELLED)
        return labels


def collect_frame_labels(cuts: Iterable[Cut], tier: str) -> FrameLabels:
    """Number the units of a tier, in the order of their names after silence.

    Raises:
        InputError: no cut has that tier.
    """
    symbols = {item.symbol for cut in cuts for item in (cut.supervisions[0].alignment or {}).get(tier, ())}
    if not symbols:
        raise InputError(f"no cut has {tier} times; set model.frame_weight to 0")
    return FrameLabels(tier, (SILENCE_LABEL, *sorted(symbols)))
