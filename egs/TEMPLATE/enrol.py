"""Set speech aside to enrol people by: of each speaker of a manifest the first utterances.

Usage:
    enrol.py MANIFEST OUT
"""

import sys
from collections import defaultdict
from pathlib import Path

import soundfile
import torch

from asrkit.cli.main import run
from asrkit.data.audio import read_cut
from asrkit.data.manifests import load_cuts, save_cuts

SECONDS, RATE = 20.0, 16000


def enrol(manifest: Path, out: Path) -> None:
    """Write OUT/<speaker>.flac with at least SECONDS of each, and OUT/rest.jsonl.gz with what is left.

    Args:
        manifest: speech of single speakers.
        out: folder to write to.
    """
    out.mkdir(parents=True, exist_ok=True)
    taken, rest = defaultdict(list), []
    for cut in load_cuts(manifest):
        own = taken[cut.supervisions[0].speaker]
        (own if sum(other.duration for other in own) < SECONDS else rest).append(cut)
    for speaker, cuts in taken.items():
        soundfile.write(out / f"{speaker}.flac", torch.cat([read_cut(cut, RATE) for cut in cuts]).numpy(), RATE)
    save_cuts(rest, out / "rest.jsonl.gz")


if __name__ == "__main__":
    run(enrol, sys.argv[1:])
