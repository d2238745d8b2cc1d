"""`asrkit tune`: find the options that do best on a development set.

Usage:
    asrkit tune decode --model exp/asr --data data/dev.jsonl.gz --fusion fusion.yaml --weights lm internal_lm length \
        --out exp/asr/tuned.yaml
    asrkit tune diarisation --observations exp/observations/dev --refs data/dev/ref.rttm --plda exp/speaker/plda.npz \
        --options ahc.threshold ahc.location_weight --out exp/ahc.yaml
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from asrkit.cli.main import run
from asrkit.cli.score import read_references
from asrkit.cli.tune_diarisation import tune_diarisation
from asrkit.config import write_config
from asrkit.data.audio import read_cut
from asrkit.data.features import pad_features
from asrkit.data.formats import write_lines
from asrkit.data.manifests import load_cuts
from asrkit.errors import InputError
from asrkit.progress import progress
from asrkit.scoring.pictures import save_picture, weight_curves
from asrkit.scoring.wer import Errors, align_all, sum_errors
from asrkit.search.fusion import fuse, load_scorers, read_fusion
from asrkit.search.recogniser import Recogniser, load

GRIDS = (0.2, 0.1)  # steps, one grid after the other; finer ones would fit the noise of a dev set
REACH = 2  # points of a grid to either side that are tried at once
BATCH = 64  # utterances decoded together

Weights = dict[str, float]


def decode(*, model: Path, data: Path, fusion: Path, weights: list[str], out: Path, beam: int = 4) -> None:
    """Find the fusion weights with the fewest word errors; of equally good ones, those nearest to zero.

    One weight after the other moves on a grid around its best value so far, until none gets better; then the grid
    becomes finer. A weight keeps its sign, unless it starts at 0. The audio is encoded once. Beside `out`, a .jsonl
    file has every point tried and a .png file shows the error rate over each weight.

    Args:
        model: experiment directory.
        data: manifest of a development set.
        fusion: YAML file with language models and the weights to start from.
        weights: which to tune: names of language models, internal_lm, length, context.
        out: YAML file to write, as `asrkit decode --fusion` reads it.
        beam: hypotheses kept by the search.
    """
    config = read_fusion(fusion)
    for name in weights:
        if name not in config.weights:
            raise InputError(f"--weights {name}: {fusion} has the weights {', '.join(config.weights)}")
    recogniser = load(model, beam)
    scorers = load_scorers(config, recogniser.tokenizer, recogniser.model.device)
    fuse(recogniser, config, scorers)  # what cannot work is said before the audio is read
    references, _ = read_references(data, [])
    batches = encode(recogniser, data)

    def errors(point: Weights) -> Errors:
        fuse(recogniser, config.with_weights(point), scorers)
        return sum_errors(align_all(references, transcribe(recogniser, batches)))

    trials = Trials(errors, out.with_suffix(".jsonl"))
    start = {name: config.weights[name] for name in weights}
    best = coordinate_search(start, trials)
    write_config(config.with_weights(best), out)
    figure = weight_curves([(trial.weights, trial.errors.rate) for trial in trials.tried.values()], best)
    save_picture(figure, out.with_suffix(".png"))
    before, after = (trials.tried[_key(point)].errors.rate for point in (start, best))
    found = ", ".join(f"{name} {weight:g}" for name, weight in best.items())
    print(f"{out}: {found}: %WER {after:.2f}, {before:.2f} at the start; {len(trials.tried)} points")


@torch.inference_mode()
def encode(recogniser: Recogniser, data: Path) -> list[tuple[list[str], Tensor, Tensor]]:
    """Return the utterances of a manifest, of similar length together: names, encoder_out (N, T, D), lens (N,)."""
    rate, device = recogniser.features.sampling_rate, recogniser.model.device
    cuts = sorted(load_cuts(data), key=lambda cut: cut.duration)
    batches = []
    for first in progress(range(0, len(cuts), BATCH), "encoding"):
        some = cuts[first : first + BATCH]
        features, feature_lens = pad_features([recogniser.fbank(read_cut(cut, rate)) for cut in some])
        encoder_out, lens = recogniser.model.encoder(features.to(device), feature_lens.to(device), 0)
        batches.append(([cut.id for cut in some], encoder_out, lens))
    return batches


def transcribe(recogniser: Recogniser, batches: list[tuple[list[str], Tensor, Tensor]]) -> dict[str, str]:
    """Return utterance -> text of what `encode` returned."""
    texts = {}
    for names, encoder_out, lens in batches:
        state = recogniser.search.start(len(names))
        recogniser.search.advance(state, encoder_out, lens)
        for name, paths in zip(names, recogniser.search.hypotheses(state), strict=True):
            texts[name] = recogniser.tokenizer.decode(paths[0].tokens)
    return texts


@dataclass
class Trial:
    weights: Weights
    errors: Errors


@dataclass
class Trials:
    """The points tried so far, none of them twice; all are in the file `log`."""

    errors: Callable[[Weights], Errors]
    log: Path
    tried: dict[tuple, Trial] = field(default_factory=dict)

    def cost(self, weights: Weights) -> tuple[int, float]:
        """Return what is minimised: word errors, then the sum of the weights' magnitudes."""
        if _key(weights) not in self.tried:
            self.tried[_key(weights)] = Trial(weights, self.errors(weights))
            write_lines(map(_log_line, self.tried.values()), self.log)
        return self.tried[_key(weights)].errors.total, sum(map(abs, weights.values()))


def coordinate_search(start: Weights, trials: Trials) -> Weights:
    """Return the best weights found from `start` on."""
    best = start
    for step in GRIDS:
        before = None
        while best != before:
            before = best
            for name in start:
                moves = (round(best[name] + move * step, 6) for move in range(-REACH, REACH + 1))
                points = [{**best, name: weight} for weight in moves if weight * start[name] >= 0]
                best = min(points, key=trials.cost)
    return best


def _key(weights: Weights) -> tuple:
    return tuple(weights.values())


def _log_line(trial: Trial) -> str:
    errors = trial.errors
    return json.dumps({"weights": trial.weights, "wer": errors.rate, "errors": errors.total, "words": errors.words})


def main(argv: list[str]) -> None:
    commands = {"decode": decode, "diarisation": tune_diarisation}
    run({**commands, "_help": "find the options that do best on a development set"}, argv)
