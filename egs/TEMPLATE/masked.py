"""Decode a manifest's utterances whole, with the attention of chunks: what streams without lookahead must equal.

Usage:
    masked.py MODEL MANIFEST CHUNK_SIZE BEAM OUT
"""

import sys
from pathlib import Path

from asrkit.cli.main import run
from asrkit.data.audio import read_cut
from asrkit.data.formats import text_line, write_lines
from asrkit.data.manifests import load_cuts
from asrkit.progress import progress
from asrkit.search.recogniser import load


def masked(model: Path, manifest: Path, chunk_size: int, beam: int, out: Path) -> None:
    """Write the transcripts as Kaldi text.

    Args:
        model: experiment directory.
        manifest: the utterances.
        chunk_size: encoder frames in a chunk.
        beam: hypotheses kept by the search.
        out: file to write.
    """
    recogniser, cuts = load(model, beam), list(load_cuts(manifest))
    rate = recogniser.features.sampling_rate
    results = (recogniser.recognise([read_cut(cut, rate)], [cut.id], chunk_size)[0] for cut in cuts)
    write_lines(map(text_line, progress(results, "decoding", len(cuts), "utt")), out)


if __name__ == "__main__":
    run(masked, sys.argv[1:])
