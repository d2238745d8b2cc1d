"""Neural language models over the tokens of a recogniser: LSTM and transformer.

The blank (id 0), which is never a label, stands for the start of the sentence as an input and for its end as an
output. A model scores token by token from a state of fixed size, and is trained by the very same code.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

BOUNDARY = 0  # start of the sentence as an input, end as an output


@dataclass(frozen=True)
class LmConfig:
    """Kind and size of a neural language model; `vocab_size` follows the tokenizer."""

    kind: Literal["lstm", "transformer"] = "lstm"
    dim: int = 256
    layers: int = 2
    heads: int = 4
    """Attention heads of the transformer."""
    context: int = 32
    """Tokens that each layer of the transformer attends to, the present one included."""
    dropout: float = 0.1
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if min(self.dim, self.layers, self.heads, self.context) < 1:
            raise ValueError("dim, layers, heads and context must be above 0")
        if self.kind == "transformer" and self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")


class LstmBody(nn.Module):
    """Stacked LSTM. State: [hidden (N, layers, D), cell (N, layers, D)]."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        dropout = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=dropout)

    def start(self, n: int) -> list[Tensor]:
        weight = self.lstm.weight_hh_l0
        return [weight.new_zeros(n, self.lstm.num_layers, self.lstm.hidden_size) for _ in ("hidden", "cell")]

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Map x (N, U, D) to the output (N, U, D) and the state after it."""
        if x.shape[1] == 1 and not self.training:
            return self._step(x, *state)
        hidden, cell = (s.transpose(0, 1).contiguous() for s in state)
        out, (hidden, cell) = self.lstm(x, (hidden, cell))
        return out, [hidden.transpose(0, 1), cell.transpose(0, 1)]

    def _step(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Do the same for a single token, cell by cell: the whole LSTM prepares its weights anew at each call.

        On the CPU (oneDNN, torch 2.13) that is half of the time of a step of the search.
        """
        layers = []
        out = x[:, 0]
        for i, weights in enumerate(self.lstm.all_weights):
            out, memory = torch.lstm_cell(out, (hidden[:, i], cell[:, i]), *weights)
            layers.append((out, memory))
        return out[:, None], [torch.stack(states, dim=1) for states in zip(*layers, strict=True)]


class TransformerLayer(nn.Module):
    """Attention to the keys and values of the last tokens, then a feed-forward network, each normalised first."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(config.dim),
            nn.Linear(config.dim, 4 * config.dim),
            nn.GELU(),
            nn.Linear(4 * config.dim, config.dim),
        )

    def forward(self, x: Tensor, bias: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (N, U, D) to the output and `cache`, keys and values (N, H, C - 1, 2d), to the new one.

        Attention is to the cache and x under bias (N, H, U, C - 1 + U); d is the size of a head.
        """
        size = x.shape[2] // self.heads
        qkv = self.qkv(self.norm(x)).unflatten(2, (self.heads, 3 * size)).transpose(1, 2)  # (N, H, U, 3d)
        q, kv = qkv.split([size, 2 * size], dim=3)
        kv = torch.cat([cache.to(kv.dtype), kv], dim=2)
        k, v = kv.chunk(2, dim=3)  # each (N, H, C - 1 + U, d)
        weights = (q * size**-0.5 @ k.mT + bias).softmax(dim=3).to(v.dtype)
        x = x + self.dropout(self.out((weights @ v).transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feedforward(x)), kv[:, :, kv.shape[2] - cache.shape[2] :]


class TransformerBody(nn.Module):
    """Transformer in which each layer attends to a sliding window of C tokens, the present one included.

    Positions are penalties that grow with the distance, a rate for each head (Press et al., "Train Short, Test Long:
    Attention with Linear Biases", 2108.12409), so they are the same wherever the window is. State: [tokens seen (N,),
    keys and values (N, H, C - 1, 2d) of each layer].
    """

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)

    def start(self, n: int) -> list[Tensor]:
        heads = self.config.heads
        size = (n, heads, self.config.context - 1, 2 * self.config.dim // heads)
        weight = self.norm.weight
        return [torch.zeros(n, dtype=torch.int64, device=weight.device)] + [weight.new_zeros(size) for _ in self.layers]

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Map x (N, U, D) to the output (N, U, D) and the state after it."""
        seen, *caches = state
        bias = self._bias(seen, x.shape[1]).to(x.dtype)
        kept = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, bias, cache)
            kept.append(cache)
        return self.norm(x), [seen + x.shape[1], *kept]

    def _bias(self, seen: Tensor, length: int) -> Tensor:
        """Return what is added to the attention scores, (N, H, U, C - 1 + U); -inf outside the window."""
        past, heads = self.config.context - 1, self.config.heads
        key = torch.arange(-past, length, device=seen.device)
        distance = torch.arange(length, device=seen.device)[:, None] - key  # (U, C - 1 + U)
        inside = (distance >= 0) & (distance <= past) & (key >= -seen[:, None, None])  # (N, U, C - 1 + U)
        rates = 2.0 ** (-8 * torch.arange(1, heads + 1, device=seen.device) / heads)
        return torch.where(inside[:, None], -rates[:, None, None] * distance, -torch.inf)


BODIES = {"lstm": LstmBody, "transformer": TransformerBody}


class NeuralLm(nn.Module):
    """Embedding, LSTM or transformer, and an output that shares its weights with the embedding (1608.05859)."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.body = BODIES[config.kind](config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)

    @property
    def device(self) -> torch.device:
        return self.bias.device

    def forward(self, batch: Any, hours: float = float("inf")) -> dict[str, Tensor]:
        """Return the cross-entropy of a batch (asrkit.data.sentences.SentenceBatch) and its tokens, each end included.

        `hours` is not used. Keys: loss, weight.
        """
        n, labels = batch.tokens.shape
        inputs = nn.functional.pad(batch.tokens, (1, 0), value=BOUNDARY)  # (N, U + 1)
        targets = nn.functional.pad(batch.tokens, (0, 1), value=BOUNDARY)
        hidden, _ = self.hidden(inputs, self.body.start(n))
        losses = nn.functional.cross_entropy(self.logits(hidden).transpose(1, 2), targets, reduction="none")
        inside = torch.arange(labels + 1, device=self.device) <= batch.token_lens[:, None]
        return {"loss": (losses * inside).sum(), "weight": inside.sum()}

    def hidden(self, tokens: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Map tokens (N, U) to the vectors (N, U, D) that predict what follows each, and the state after them."""
        embedded = self.embedding(tokens) * self.config.dim**0.5
        out, state = self.body(self.dropout(embedded), state)
        return self.dropout(out), state

    def logits(self, hidden: Tensor) -> Tensor:
        """Map vectors (…, D) to float logits (…, V), of which BOUNDARY is the end of the sentence."""
        return nn.functional.linear(hidden, self.embedding.weight, self.bias).float()


class NeuralScorer:
    """A neural language model as a scorer; state: [what predicts the next token (B, D), then that of the model]."""

    def __init__(self, model: NeuralLm, name: str = "lm") -> None:
        self.model, self.name = model.eval(), name

    def start(self, n: int) -> list[Tensor]:
        tokens = torch.full((n,), BOUNDARY, device=self.model.device)
        return self.advance([tokens, *self.model.body.start(n)], tokens)

    def score(self, state: list[Tensor]) -> Tensor:
        return self.model.logits(state[0]).log_softmax(dim=-1)

    def advance(self, state: list[Tensor], tokens: Tensor) -> list[Tensor]:
        hidden, memory = self.model.hidden(tokens[:, None], state[1:])
        return [hidden[:, 0], *memory]

    def finish(self, state: list[Tensor]) -> Tensor:
        return self.score(state)[:, BOUNDARY]
