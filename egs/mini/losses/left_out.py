"""Measure how much of the exact loss the labels that pruning keeps leave out, by what finds them.

Usage:
    left_out.py MODEL MANIFEST [--utterances N]
"""

import sys
from itertools import islice
from pathlib import Path

import torch
from lhotse.cut import Cut

from asrkit.cli.main import run
from asrkit.data.audio import read_cut
from asrkit.data.features import pad_features
from asrkit.data.manifests import load_cuts
from asrkit.errors import InputError
from asrkit.losses.pruned import ctc_occupations, pruned_loss, pruning_ranges, simple_loss
from asrkit.losses.transducer import joint_transducer_loss
from asrkit.progress import progress
from asrkit.search.recogniser import Recogniser, load

SIZES = (3, 4, 5)


def left_out(model: Path, manifest: Path, utterances: int = 200) -> None:
    """Print by how much the loss of an utterance grows, on average and at most, with 3, 4 and 5 labels a frame.

    Args:
        model: experiment directory of a model trained with `model.prune_by: simple`, which has both ways to find them.
        manifest: the utterances.
        utterances: how many of them.
    """
    recogniser = load(model, beam=1)
    if not recogniser.model.has_simple_joiner:
        raise InputError(f"{model}: not trained with model.prune_by: simple")
    cuts = progress(list(islice(load_cuts(manifest), utterances)), "measuring", unit="utt")
    with torch.inference_mode():
        rows = torch.stack([grown(recogniser, cut) for cut in cuts])  # (N, 2, sizes)
    for way, found in zip(("simple", "ctc"), rows.unbind(dim=1), strict=True):
        for size, grows in zip(SIZES, found.unbind(dim=1), strict=True):
            print(f"{way}, {size} labels a frame: {grows.mean():.4f} on average, {grows.max():.2f} at most")


def grown(recogniser: Recogniser, cut: Cut) -> torch.Tensor:
    """Return how much the loss of an utterance grows by each way and size (2, sizes)."""
    model, joiner = recogniser.model, recogniser.model.joiner
    samples = read_cut(cut, recogniser.features.sampling_rate)
    features, lens = pad_features([recogniser.fbank(samples)])
    encoder_out, lens = model.encoder(features, lens)
    tokens = torch.tensor([recogniser.tokenizer.encode(cut.supervisions[0].text)])
    target = tokens, lens, torch.tensor([tokens.shape[1]])
    predictor_out, _ = model.predictor(model.with_start(tokens), model.predictor.start(1))
    parts = joiner.project_encoder(encoder_out), joiner.project_predictor(predictor_out)
    parts += joiner.output.weight, joiner.output.bias
    topology = model.config.topology
    exact = joint_transducer_loss(*parts, *target, topology=topology)
    halves = model.simple_encoder(encoder_out), model.simple_predictor(predictor_out)
    ctc_log_probs = model.ctc(encoder_out).log_softmax(dim=-1)
    _, *by_simple = simple_loss(*halves, *target, topology=topology)
    ways = by_simple, ctc_occupations(ctc_log_probs, *target, topology=topology)
    losses = [
        pruned_loss(*parts, pruning_ranges(*way, *target[1:], size, topology), *target, topology=topology) - exact
        for way in ways
        for size in SIZES
    ]
    return torch.cat(losses).view(len(ways), len(SIZES))


if __name__ == "__main__":
    run(left_out, sys.argv[1:])
