"""AdamW from torch, and ScaledAdam."""

import math

import torch
from torch import Tensor, nn

from asrkit.training.config import TrainingConfig

ADAM_BETAS = (0.9, 0.98)


def build_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser over those parameters of `model` that require gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimiser == "scaled_adam":
        return ScaledAdam(parameters, config.learning_rate, clip=config.clip_norm)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, config.learning_rate, betas=ADAM_BETAS, fused=True)


class ScaledAdam(torch.optim.Optimizer):
    """ScaledAdam (arXiv:2310.11230, section "ScaledAdam").

    Each tensor is thought of as θ = r θ' with r its root mean square. The direction moves by Adam's step times r, so
    that the relative change is the same for large and small tensors:
        Δ = -α r c m / (√v + ε),   m, v: moments of the gradient g,   c = √(1 - β₂ᵗ) / (1 - β₁ᵗ);
    and r itself is learnt by Adam from its gradient h = Σ g θ / r, at the smaller rate η α, also relative to r:
        Δᵣ = -η α r c n / (√w + ε),  n, w: moments of h,   θ ← θ + Δ + Δᵣ θ / r.

    Before that, the gradient is shortened to at most `clip` times the median of the last `CLIP_WINDOW` gradient
    norms, in which each tensor's part is multiplied by its r: the length of the gradient as seen by θ'.

    All parameters are of one device and have gradients at every step, as the training loop sees to.
    """

    SCALE_RATE = 0.1  # η
    SMALLEST_RMS = 1e-5  # a tensor of zeros must be able to grow
    CLIP_WINDOW = 128

    def __init__(self, parameters, lr: float = 0.045, betas=ADAM_BETAS, eps: float = 1e-8, clip: float = 2.0):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "step": 0})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["avg"] = torch.zeros_like(parameter)  # m
                self.state[parameter]["avg_sq"] = torch.zeros_like(parameter)  # v
            shared = self._shared(group)
            shared["norms"] = parameter.new_full((self.CLIP_WINDOW,), math.nan, requires_grad=False)
            shared["scale_avg"] = parameter.new_zeros(len(group["params"]), requires_grad=False)  # n
            shared["scale_avg_sq"] = torch.zeros_like(shared["scale_avg"])  # w

    def _shared(self, group: dict) -> dict[str, Tensor]:
        """Return the state of the whole group; kept with its first tensor, so that loading moves it to the device."""
        return self.state[group["params"][0]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = group["params"]
            gradients = [parameter.grad for parameter in parameters]
            sizes = torch.tensor([p.numel() for p in parameters], device=parameters[0].device)  # (P,)
            rms = torch.stack(torch._foreach_norm(parameters)) / sizes.sqrt()  # (P,)
            rms = rms.clamp(min=self.SMALLEST_RMS)
            torch._foreach_mul_(gradients, self._shorten(group, gradients, rms))
            group["step"] += 1
            scale_change = self._scale_change(group, gradients, rms)
            direction = self._direction(group, gradients)
            torch._foreach_mul_(direction, (self._rate(group) * rms).unbind())
            torch._foreach_mul_(parameters, (1 - scale_change).unbind())
            torch._foreach_sub_(parameters, direction)

    def _shorten(self, group: dict, gradients: list[Tensor], rms: Tensor) -> Tensor:
        """Return the factor () that shortens this gradient, and remember its norm; never waits for the device."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)) * rms)
        norms = self._shared(group)["norms"]
        limit = group["clip"] * norms.nanmedian()  # nan before the first step: no limit
        norms[group["step"] % self.CLIP_WINDOW] = norm
        return torch.nan_to_num(limit / norm, nan=1.0).clamp(max=1.0)

    def _rate(self, group: dict) -> float:
        """Return α c."""
        beta1, beta2 = group["betas"]
        return group["lr"] * math.sqrt(1 - beta2 ** group["step"]) / (1 - beta1 ** group["step"])

    def _scale_change(self, group: dict, gradients: list[Tensor], rms: Tensor) -> Tensor:
        """Return -Δᵣ / r (P,)."""
        beta1, beta2 = group["betas"]
        average, square = self._shared(group)["scale_avg"], self._shared(group)["scale_avg_sq"]
        gradient = torch.stack([product.sum() for product in torch._foreach_mul(gradients, group["params"])]) / rms
        average.lerp_(gradient, 1 - beta1)
        square.lerp_(gradient**2, 1 - beta2)
        return self.SCALE_RATE * self._rate(group) * average / (square.sqrt() + group["eps"])

    def _direction(self, group: dict, gradients: list[Tensor]) -> list[Tensor]:
        """Return m / (√v + ε) of each tensor."""
        beta1, beta2 = group["betas"]
        averages = [self.state[parameter]["avg"] for parameter in group["params"]]
        squares = [self.state[parameter]["avg_sq"] for parameter in group["params"]]
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        return list(torch._foreach_div(averages, roots))
