"""One training step of our model against the same model with a peer's loss after a plain joiner, and its parts.

Usage:
    python tools/bench/training_step.py --json training_step.json
    python tools/bench/training_step.py --quick

The model and the training are those of a recipe's configuration, the audio is noise. One thread of the CPU.
"""

import random
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy
import soundfile
import torch
from common import Row, comparison, load_peers, milliseconds, one_thread, options, peak_memory, report
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from torch import Tensor
from transducer_loss import Labels, Loss, all_logits, full_sums, pruned_chains

from asrkit.cli.train import ExperimentConfig
from asrkit.config import read_config
from asrkit.data.batching import Batch, BatchLoader
from asrkit.models.transducer import Transducer, TransducerConfig
from asrkit.training.config import TrainingConfig
from asrkit.training.optimisers import build_optimiser
from asrkit.training.state import flat_gradient, seed_everything

CONFIG = Path(__file__).parents[2] / "egs/mini/asr/conf/default/train.yaml"
VOCAB_SIZE, FRAME_UNITS = 500, 45
LABELS_PER_SECOND = 3
SECONDS = (2.0, 5.0)  # an utterance has
TOLERANCE = {False: 1e-3, True: 5e-2}  # in bf16, of the gradient of the whole model
LOSSES = "predictor, joiner and losses"


def main() -> None:
    arguments = options(__doc__).parse_args()
    one_thread()
    config = read_config(ExperimentConfig, [CONFIG])
    sizes = {"vocab_size": VOCAB_SIZE, "num_mel_bins": config.features.num_mel_bins, "frame_units": FRAME_UNITS}
    config = replace(config, model=replace(config.model, **sizes), batching=replace(config.batching, workers=0))
    turns = 1 if arguments.quick else 10
    peers = load_peers("torchaudio", "k2", "fast_rnnt")
    full = {name: partial(all_logits, loss) for name, loss in full_sums(peers).items()}
    modified = {name: loss for name, loss in full.items() if name != "torchaudio"}  # which knows the regular paths only
    works = [
        ("full sum", {"loss": "full", "topology": "regular"}, full),
        ("full sum", {"loss": "full", "topology": "modified"}, modified),
        ("pruned sum", {"loss": "pruned", "prune_by": "simple"}, pruned_chains(peers)),
        ("pruned sum by CTC", {"loss": "pruned", "prune_by": "ctc"}, {}),
    ]
    with tempfile.TemporaryDirectory() as folder:
        cuts = noise(Path(folder), config, batches=1 if arguments.quick else 4)
        compared = [compare(config, cuts, *work, turns) for work in works]
    rows = [row for some, _ in compared for row in some]
    report("training_step.py", rows, arguments, notes=[note for _, note in compared])


def noise(folder: Path, config: ExperimentConfig, batches: int) -> CutSet:
    """Write noise for some batches, with random labels as transcripts."""
    choose = random.Random(0)
    generator = numpy.random.default_rng(0)
    rate = config.features.sampling_rate
    cuts, left = [], batches * config.batching.max_duration
    while left > 0:
        seconds = choose.uniform(*SECONDS)
        left -= seconds
        file = folder / f"{len(cuts)}.wav"
        soundfile.write(file, 0.1 * generator.standard_normal(int(seconds * rate)), rate)
        recording = Recording.from_file(file)
        labels = choose.choices(range(1, VOCAB_SIZE), k=int(seconds * LABELS_PER_SECOND))
        cut = recording.to_cut()
        text = " ".join(map(str, labels))
        cut.supervisions = [SupervisionSegment(file.stem, recording.id, 0.0, cut.duration, text=text)]
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def random_frame_labels(cut: MonoCut, frames: int, speed: float) -> Tensor:
    return torch.randint(FRAME_UNITS, (frames,))


def compare(
    config: ExperimentConfig, cuts: CutSet, kind: str, model: dict[str, str], peers: dict[str, Loss], turns: int
) -> tuple[list[Row], str]:
    """Return the rows of a loss, and a line that tells where the time of our step goes."""
    config = replace(config, model=replace(config.model, **model))
    torch.manual_seed(0)
    ours = Transducer(config.model)
    models = {"asrkit": ours, **{name: WithPeer(config.model, criterion) for name, criterion in peers.items()}}
    for model in models.values():
        model.load_state_dict(ours.state_dict())
    trainees = {name: Trainee(model, config.training) for name, model in models.items()}

    loader = BatchLoader(
        cuts, config.features, config.batching, numbers, config.augmentation, frame_labels=random_frame_labels
    )
    batch = next(loader.epoch(0))
    expected, *found = [trainee.results(batch) for trainee in trainees.values()]
    results = [comparison(expected, theirs, TOLERANCE[config.training.bf16]) for theirs in found]
    steps = fastest_steps(trainees, loader, batch, turns)
    memory = {name: peak_memory(partial(trainee.step, batch)) for name, trainee in trainees.items()}

    rows = []
    n, frames = batch.features.shape[:2]
    bf16 = " in bf16" * config.training.bf16
    work = f"{kind}, {config.model.topology}{bf16}, N={n} T={frames // 4} U={batch.tokens.shape[1]} V={VOCAB_SIZE}"
    speed = {name: 3.6e6 * batch.hours / sum(parts.values()) for name, parts in steps.items()}
    for name, result in zip(peers, results, strict=True):
        rows.append(
            Row(work, name, speed["asrkit"], speed[name], "hours of audio an hour", result, more_is_better=True)
        )
        if memory[name] is not None:
            rows.append(Row(work, name, memory["asrkit"], memory[name], "MiB over the model", result))
        rows.append(Row(work, name, steps["asrkit"][LOSSES], steps[name][LOSSES], f"CPU ms for {LOSSES}", result))
    parts = ", ".join(f"{name} {value:.3g}" for name, value in steps["asrkit"].items())
    return rows, f"{work}, CPU ms of our step: {parts}"


def fastest_steps(
    trainees: dict[str, "Trainee"], loader: BatchLoader, batch: Batch, turns: int
) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each part of the fastest of several steps, taken in turns."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(turns):
        for name, trainee in trainees.items():
            parts = trainee.step(batch)
            if name not in best or sum(parts.values()) < sum(best[name].values()):
                best[name] = parts
    data = min(milliseconds(partial(next, loader.epoch(0))) for _ in range(turns))  # the same for all
    return {name: {"data": data, **parts} for name, parts in best.items()}


class WithPeer(Transducer):
    """Our model but for the transducer losses, which are a peer's."""

    def __init__(self, config: TransducerConfig, criterion: Loss) -> None:
        super().__init__(config)
        self.criterion = criterion

    def transducer_losses(
        self, encoder_out: Tensor, _: Tensor, tokens: Tensor, lens: Tensor, token_lens: Tensor, warm: bool
    ) -> dict[str, Tensor]:
        encoder_out, tokens = encoder_out[:, : lens.max()], tokens[:, : token_lens.max()]  # torchaudio insists
        predictor_out, _ = self.predictor(self.with_start(tokens), self.predictor.start(len(tokens)))
        labels = Labels(tokens, lens, token_lens, self.config.topology)
        joiner = [self.joiner.project_encoder(encoder_out), self.joiner.project_predictor(predictor_out)]
        joiner += [self.joiner.output.weight, self.joiner.output.bias]
        if self.config.loss == "full":
            return {"transducer": self.criterion(labels, *joiner).sum()}
        logits = self.simple_encoder(encoder_out), self.simple_predictor(predictor_out)
        simple, pruned = self.criterion(labels, *logits, *joiner).sum(dim=1)
        return {"simple": simple, "transducer": pruned}


class Trainee:
    """A model with its optimiser."""

    def __init__(self, model: Transducer, config: TrainingConfig) -> None:
        self.model, self.config = model, config
        self.optimiser = build_optimiser(model, config)
        self.gradient = flat_gradient(model)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, always with the same dropout."""
        seed_everything(0)
        self.gradient.zero_()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            return self.model(batch)["loss"]

    def results(self, batch: Batch) -> list[Tensor]:
        """Return the loss of a batch and the gradient of all parameters."""
        loss = self.loss(batch)
        loss.backward()
        return [loss.detach(), self.gradient.clone()]

    def step(self, batch: Batch) -> dict[str, float]:
        """Take a step and return the CPU milliseconds of its parts."""
        marks = []

        def mark(*_: object) -> None:
            marks.append(1000 * time.process_time())

        def encoded(_module: object, _input: object, output: tuple[Tensor, Tensor]) -> None:
            mark()
            output[0].register_hook(mark)  # when its gradient is complete, what is left to do is the encoder's part

        mark()
        hook = self.model.encoder.register_forward_hook(encoded)
        loss = self.loss(batch)
        hook.remove()
        loss.backward()
        mark()
        self.gradient.mul_(self.config.clip_norm / torch.linalg.vector_norm(self.gradient))
        self.optimiser.step()
        mark()
        start, forward, gradient, backward, end = marks
        return {
            "encoder": forward - start + backward - gradient,
            LOSSES: gradient - forward,
            "optimiser": end - backward,
        }


if __name__ == "__main__":
    main()
