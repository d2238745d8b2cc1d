"""The label side of a transducer: predictors (LSTM, stateless) and the joiner.

A predictor maps `forward(tokens (N, U), state)` to `(predictor_out (N, U, D), state)`; its state is a list of tensors
with the hypothesis in dimension 0. Feeding the blank (id 0) stands for the start of the sentence.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PredictorConfig:
    """Size of the label context network."""

    kind: Literal["lstm", "stateless"] = "stateless"
    dim: int = 144
    layers: int = 1
    """LSTM layers."""
    context: int = 2
    """Labels that the stateless predictor sees."""
    dropout: float = 0.1


class LstmPredictor(nn.Module):
    """Embedding and LSTM (Graves, "Sequence Transduction with Recurrent Neural Networks", 1211.3711)."""

    def __init__(self, config: PredictorConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True)

    def start(self, n: int) -> list[Tensor]:
        size = (n, self.config.layers, self.config.dim)
        return [self.embedding.weight.new_zeros(size) for _ in ("hidden", "cell")]

    def forward(self, tokens: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        embedded = self.dropout(self.embedding(tokens))
        if tokens.shape[1] == 1 and not self.training:
            return self._step(embedded[:, 0], *state)
        hidden, cell = (s.transpose(0, 1).contiguous() for s in state)
        out, (hidden, cell) = self.lstm(embedded, (hidden, cell))
        return self.dropout(out), [hidden.transpose(0, 1), cell.transpose(0, 1)]

    def _step(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One label, x (N, D): a search calls this often, and nn.LSTM takes its weights apart anew in each call."""
        steps = []
        for (w_ih, w_hh, b_ih, b_hh), h, c in zip(self.lstm.all_weights, hidden.unbind(1), cell.unbind(1), strict=True):
            x, c = torch.lstm_cell(x, (h, c), w_ih, w_hh, b_ih, b_hh)
            steps.append((x, c))
        return x[:, None], [torch.stack(s, dim=1) for s in zip(*steps, strict=True)]


class StatelessPredictor(nn.Module):
    """Convolution over the last few labels (Ghodsi et al., "RNN-Transducer with Stateless Prediction Network").

    Published at ICASSP 2020; with a context of two labels, as in icefall.
    """

    def __init__(self, config: PredictorConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.conv = nn.Conv1d(config.dim, config.dim, config.context, groups=max(1, config.dim // 4))
        nn.init.normal_(self.embedding.weight, std=0.5)

    def start(self, n: int) -> list[Tensor]:
        """State: the last context - 1 labels (N, context - 1)."""
        return [torch.zeros(n, self.config.context - 1, dtype=torch.int64, device=self.embedding.weight.device)]

    def forward(self, tokens: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        labels = torch.cat([state[0], tokens], dim=1)  # (N, context - 1 + U)
        embedded = self.dropout(self.embedding(labels))
        out = self._step(embedded) if tokens.shape[1] == 1 else self.conv(embedded.transpose(1, 2)).transpose(1, 2)
        return nn.functional.silu(out), [labels[:, tokens.shape[1] :]]

    def _step(self, embedded: Tensor) -> Tensor:
        """Map embedded (N, context, D) to (N, 1, D): the convolution as matrix products, a third of its time."""
        groups = self.conv.groups
        window = embedded.transpose(1, 2).unflatten(1, (groups, -1)).flatten(2).transpose(0, 1)  # (G, N, D / G * C)
        weight = self.conv.weight.unflatten(0, (groups, -1)).flatten(2)  # (G, D / G, D / G * context)
        return (window @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)[:, None] + self.conv.bias


PREDICTORS = {"lstm": LstmPredictor, "stateless": StatelessPredictor}


class Joiner(nn.Module):
    """logits = W tanh(encoder + predictor) + b, both sides projected to the joint space first.

    The two projections are separate calls, so a search computes each once. With `factored_blank` the blank's logit
    decides by itself whether a label comes, and the others only which (Variani et al., "Hybrid Autoregressive
    Transducer (HAT)", 2003.07705): P(blank) = sigmoid(z_0), P(k) = (1 - P(blank)) softmax(z_1 …)_k.
    """

    def __init__(
        self, encoder_dim: int, predictor_dim: int, joiner_dim: int, vocab_size: int, factored_blank: bool = False
    ) -> None:
        super().__init__()
        self.factored_blank = factored_blank
        self.project_encoder = nn.Linear(encoder_dim, joiner_dim)
        self.project_predictor = nn.Linear(predictor_dim, joiner_dim)
        self.output = nn.Linear(joiner_dim, vocab_size)

    def combine(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """Map broadcastable joint-space vectors (…, D) to logits (…, V)."""
        return self.output(torch.tanh(encoder + predictor))

    def log_probs(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """Map broadcastable joint-space vectors (…, D) to log-probabilities (…, V), float32."""
        logits = self.combine(encoder, predictor).float()
        if not self.factored_blank:
            return logits.log_softmax(dim=-1)
        blank, labels = logits[..., :1], logits[..., 1:]
        no_blank = nn.functional.logsigmoid(-blank)
        return torch.cat([nn.functional.logsigmoid(blank), no_blank + labels.log_softmax(dim=-1)], dim=-1)

    def internal_lm(self, predictor: Tensor) -> Tensor:
        """Map joint-space vectors of the predictor (…, D) to the internal language model's log-probabilities (…, V).

        The encoder's share of the joint space is zero and the blank is taken out, so its log-probability is -inf and
        those of the labels are normalised (Meng et al., "Internal Language Model Estimation for Domain-Adaptive
        End-to-End Speech Recognition", 2011.01991). For a factored blank it is the same, there exactly so.
        """
        labels = self.output(torch.tanh(predictor)).float()[..., 1:].log_softmax(dim=-1)
        return nn.functional.pad(labels, (1, 0), value=-torch.inf)

    def forward(self, encoder_out: Tensor, predictor_out: Tensor) -> Tensor:
        """Map encoder_out (N, T, D) and predictor_out (N, U + 1, D) to logits (N, T, U + 1, V)."""
        encoder = self.project_encoder(encoder_out)[:, :, None]
        return self.combine(encoder, self.project_predictor(predictor_out)[:, None])
