"""The transducer: encoder, predictor, joiner and an auxiliary CTC output."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asrkit.data.alignment import UNLABELLED
from asrkit.losses.internal_lm import internal_lm_loss
from asrkit.losses.pruned import ctc_occupations, pruned_loss, pruning_ranges, simple_loss
from asrkit.losses.transducer import joint_transducer_loss
from asrkit.nn.decoders import PREDICTORS, Joiner, PredictorConfig
from asrkit.nn.encoders import ENCODERS, EncoderConfig

BLANK = 0


@dataclass(frozen=True)
class TransducerConfig:
    """The whole model; `vocab_size`, `num_mel_bins` and `frame_units` follow the tokenizer, features and alignments."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    joiner_dim: int = 144
    topology: Literal["modified", "regular", "constrained"] = "modified"
    """At most one label a frame ("modified"), or any number. The regular one lets a model pile up the labels of a word
    on its last frame, where a search has to find all of them at once. "constrained" is the modified one with a blank
    after each label, which makes its probabilities those of the regular one."""
    loss: Literal["full", "pruned"] = "full"
    """Sum over all alignments, or over those near a cheaper model's: faster, above all for long transcripts and large
    vocabularies."""
    prune_range: int = 5
    """Labels a frame that the pruned loss keeps."""
    prune_by: Literal["ctc", "simple"] = "ctc"
    """What finds them: the CTC output, or a joiner that only adds logits, which costs a loss of its own."""
    simple_weight: float = 0.5
    """Weight of the loss of that joiner."""
    factored_blank: bool = False
    """The blank decides whether a label comes, the other outputs which (HAT)."""
    delay_penalty: float = 0.0
    """Makes late labels less probable in training, by this much a frame."""
    internal_lm_weight: float = 0.0
    """Weight of the internal language model's loss on the transcripts (about 0.2 to 0.4)."""
    ctc_weight: float = 0.3
    frame_weight: float = 0.0
    """Weight of the cross-entropy of the units spoken in each encoder frame, for corpora with time alignments."""
    frame_tier: Literal["phone", "word"] = "phone"
    """The alignment tier with those units."""
    warm_start_hours: float = 0.0
    """Hours of audio at the start of training without the transducer loss. They let the encoder hear before the
    predictor can guess, which cures the plateau and the emission of the first token at frame 0."""
    vocab_size: int = 0
    num_mel_bins: int = 80
    frame_units: int = 0

    def __post_init__(self) -> None:
        if self.loss == "pruned" and self.prune_by == "ctc" and not self.ctc_weight:
            raise ValueError("prune_by: ctc wants a CTC output that is trained: ctc_weight above 0")


class Transducer(nn.Module):
    """Transducer whose encoder also feeds a CTC output over the same tokens and a frame classifier.

    The two auxiliary outputs train the encoder. Starting it from aligned frames follows Hu et al., "Exploring
    Pre-training with Alignments for RNN Transducer based End-to-End Speech Recognition", 2005.00572.
    """

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ENCODERS[config.encoder.kind](config.encoder, config.num_mel_bins)
        self.predictor = PREDICTORS[config.predictor.kind](config.predictor, config.vocab_size)
        self.joiner = Joiner(
            config.encoder.dim, config.predictor.dim, config.joiner_dim, config.vocab_size, config.factored_blank
        )
        self.ctc = nn.Linear(config.encoder.dim, config.vocab_size)
        self.frames = nn.Linear(config.encoder.dim, config.frame_units) if config.frame_units else None
        self.has_simple_joiner = config.loss == "pruned" and config.prune_by == "simple"
        if self.has_simple_joiner:
            self.simple_encoder = nn.Linear(config.encoder.dim, config.vocab_size)
            self.simple_predictor = nn.Linear(config.predictor.dim, config.vocab_size)

    @property
    def device(self) -> torch.device:
        return self.ctc.weight.device

    def forward(self, batch: Any, hours: float = float("inf")) -> dict[str, Tensor]:
        """Return the losses of a batch (asrkit.data.batching.Batch), summed over it, and its number of labels.

        `hours` is the amount of audio trained on so far. Keys: loss (total), weight (labels), and those
        that are trained of ctc, frame, simple, transducer, internal_lm.
        """
        config = self.config
        encoder_out, lens = self.encoder(batch.features, batch.feature_lens)
        targets = batch.tokens, lens, batch.token_lens
        ctc_log_probs = self.ctc(encoder_out).float().log_softmax(dim=-1)  # (N, T, V)
        losses = {"ctc": ctc_loss(ctc_log_probs, *targets)}
        weights = {"ctc": config.ctc_weight}
        if self.frames is not None and batch.frame_labels is not None:
            losses["frame"] = self.frame_loss(encoder_out, batch.frame_labels, batch.token_lens)
            weights["frame"] = config.frame_weight
        warm = self.training and hours < config.warm_start_hours
        if not warm or self.has_simple_joiner:  # it has to know where labels are by the end of the warm start
            losses |= self.transducer_losses(encoder_out, ctc_log_probs, *targets, warm)
            weights |= {"transducer": 1.0, "simple": config.simple_weight, "internal_lm": config.internal_lm_weight}
        total = sum(weights[name] * loss for name, loss in losses.items())
        return {"loss": total, **losses, "weight": batch.token_lens.sum()}

    def frame_loss(self, encoder_out: Tensor, frame_labels: Tensor, token_lens: Tensor) -> Tensor:
        """Cross-entropy of frame_labels (N, T), its mean over each utterance times the utterance's labels.

        So it is of the size of the losses over labels, whatever the length of the frames.
        """
        logits = self.frames(encoder_out).float().transpose(1, 2)  # (N, C, T)
        losses = nn.functional.cross_entropy(logits, frame_labels, reduction="none", ignore_index=UNLABELLED)
        labelled = (frame_labels != UNLABELLED).sum(dim=1)
        return (losses.sum(dim=1) / labelled.clamp(min=1) * token_lens).sum()

    def transducer_losses(
        self, encoder_out: Tensor, ctc_log_probs: Tensor, tokens: Tensor, lens: Tensor, token_lens: Tensor, warm: bool
    ) -> dict[str, Tensor]:
        """Return the sums of the losses that need the predictor.

        Args:
            encoder_out: (N, T, D), ctc_log_probs: (N, T, V), tokens: (N, U), lens: (N,) frames, token_lens: (N,).
            warm: leave all but the loss of the simple joiner, if there is one.
        """
        config, joiner = self.config, self.joiner
        predictor_out, _ = self.predictor(self.with_start(tokens), self.predictor.start(len(tokens)))
        target = (tokens, lens, token_lens)
        options = {"topology": config.topology, "delay_penalty": config.delay_penalty}
        losses = {}
        if self.has_simple_joiner:
            halves = self.simple_encoder(encoder_out), self.simple_predictor(predictor_out)
            losses["simple"], *occupations = simple_loss(*halves, *target, **options)
        elif config.loss == "pruned":
            occupations = ctc_occupations(ctc_log_probs, *target, **options)
        if not warm:
            joint = joiner.project_encoder(encoder_out), joiner.project_predictor(predictor_out)
            arguments = (*joint, joiner.output.weight, joiner.output.bias)
            options["factored"] = config.factored_blank
            if config.loss == "pruned":
                ranges = pruning_ranges(*occupations, lens, token_lens, config.prune_range, config.topology)
                losses["transducer"] = pruned_loss(*arguments, ranges, *target, **options)
            else:
                losses["transducer"] = joint_transducer_loss(*arguments, *target, **options)
            if config.internal_lm_weight:
                losses["internal_lm"] = internal_lm_loss(joiner.internal_lm(joint[1]), tokens, token_lens)
        return {name: loss.sum() for name, loss in losses.items()}

    @staticmethod
    def with_start(tokens: Tensor) -> Tensor:
        """Put the start of the sentence, which the blank stands for, before tokens (N, U)."""
        return torch.nn.functional.pad(tokens, (1, 0), value=BLANK)


def ctc_loss(log_probs: Tensor, tokens: Tensor, lens: Tensor, token_lens: Tensor) -> Tensor:
    """Sum of the CTC losses of log_probs (N, T, V); utterances too short for their labels count nothing."""
    log_probs = log_probs.transpose(0, 1)  # (T, N, V)
    return nn.functional.ctc_loss(log_probs, tokens, lens, token_lens, BLANK, reduction="sum", zero_infinity=True)
