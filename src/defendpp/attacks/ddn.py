"""Decoupled direction and norm: a minimal L2 attack (Rony et al., CVPR 2019, arXiv:1811.09600, algorithm 1)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from defendpp.attacks.engine import (
    AttackResult,
    Closest,
    attacking,
    check_at_least,
    check_inputs,
    cross_entropy,
    gradient_pass,
    is_adversarial,
    l2_norm,
    unit,
)


def ddn(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    targeted: bool = False,
    steps: int = 100,
    gamma: float = 0.05,
    initial_norm: float = 1.0,
    levels: int | None = 256,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Smallest L2 perturbation that changes the prediction, for each image.

    The step follows the normalised gradient of the cross-entropy, of length α (cosine from 1 to 0.01); then the
    perturbation δ is rescaled to the norm ε, which shrinks by 1 - γ when the iterate is adversarial and grows by 1 + γ
    when not.

    model: images in [0, 1] to logits; left as found. images: in [0, 1]. labels: the true classes, or the wanted ones if
    `targeted`. initial_norm: first ε, in pixel units. levels: every iterate is rounded to k / (levels - 1), as an 8-bit
    file would store it; None searches real-valued images. generator: draws one direction per image, followed where the
    gradient is zero; by default a generator of seed 0 at every call.

    Returns the adversarial iterate of smallest distance, the one after the last step included. An image already
    adversarial comes back unchanged with success; one never made adversarial comes back unchanged without. Costs
    `steps` gradient passes and 2 forward passes.

    Raises ValueError on images outside [0, 1], labels that do not fit images or model, steps < 1, γ outside (0, 1),
    initial_norm <= 0 or levels < 2.
    """
    check_inputs(images, labels)
    check_at_least("steps", steps, 1)
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must lie between 0 and 1, got {gamma}")
    if not 0 < initial_norm < math.inf:
        raise ValueError(f"initial_norm must be finite and above 0, got {initial_norm}")
    if levels is not None:
        check_at_least("levels", levels, 2)
    sign = -1 if targeted else 1
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return sign * cross_entropy(logits, labels)

    with attacking(model, images, labels) as (classify, x, y):
        noise = torch.randn(x.shape, dtype=x.dtype, device=generator.device, generator=generator)
        fallback = unit(noise.to(x.device))
        ε_max = l2_norm(torch.maximum(x, 1 - x))
        ε = torch.full_like(ε_max, initial_norm)
        tiny = torch.finfo(x.dtype).tiny
        closest = Closest(x)
        iterate = x
        for i in range(steps + 1):
            with torch.set_grad_enabled(i < steps):  # the last iterate is judged, and moves no further
                _, logits, g = gradient_pass(classify, iterate, y, loss)
            adversarial = is_adversarial(classify.verdict(iterate, logits), y, targeted)
            closest.offer(iterate, adversarial)

            g = unit(g)
            g = torch.where(l2_norm(g) == 0, fallback, g)
            α = 0.01 + 0.99 * (1 + math.cos(math.pi * i / steps)) / 2
            δ = iterate - x + α * g
            ε = torch.where(adversarial.view_as(ε), (1 - gamma) * ε, (1 + gamma) * ε).minimum(ε_max)
            δ = δ * (ε / l2_norm(δ).clamp_min(tiny))
            iterate = (x + δ).clamp(0, 1)
            if levels is not None:
                iterate = (iterate * (levels - 1)).round() / (levels - 1)
        return closest.result(classify, y, targeted, queries=(steps + 1) * classify.passes)
