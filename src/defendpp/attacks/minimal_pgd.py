"""Projected gradient descent at the smallest radius: a minimal L-infinity attack.

The steps are those of PGD (Madry et al. 2018, arXiv:1706.06083); the radius of each image follows its successes and
failures, as in FMN (Pintor et al., NeurIPS 2021, arXiv:2102.12827), which takes L2-normalised steps instead.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from defendpp.attacks.engine import (
    AttackResult,
    Closest,
    attacking,
    check_at_least,
    check_inputs,
    column,
    cross_entropy,
    gradient_pass,
    is_adversarial,
    linf_norm,
    margin,
)

BEYOND = 2.5  # first radius, as a multiple of where a linear model would flip: well beyond, to find an image at once
RADIUS = (0.2, 0.003)  # share by which the radius changes at the first step and at the last
STEP = (0.5, 0.02)  # length of the first step and of the last, as a share of the radius


def minimal_pgd(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    targeted: bool = False,
    upper: float = 1.0,
    steps: int = 60,
    loss: Literal["cross_entropy", "margin"] = "cross_entropy",
) -> AttackResult:
    """Smallest L-infinity perturbation that changes the prediction, for each image: every budget from one run.

    A search over the radius that `pgd` is given, where no step is spent on starting afresh: after each step along the
    sign of the gradient, an image's radius shrinks below the smallest distance found, or grows towards it if the
    iterate is not adversarial, ever finer; and the iterate is clipped to the new ball. The first radius is 2.5 times
    that of a linear model, |margin| / ‖∇margin‖₁, and every change is relative, so that the scale of the distances does
    not matter.

    model: images in [0, 1] to logits; left as found. images: in [0, 1]. labels: the true classes, or the wanted ones if
    `targeted`. upper: largest radius tried, in pixel units. steps: gradient passes. loss: what the steps follow, as for
    `pgd`; the first one follows the margin, whose gradient does not vanish where the model is very sure.

    Returns the adversarial iterate of smallest distance, the one after the last step included. An image already
    adversarial comes back unchanged with success; one never made adversarial comes back unchanged without. There is no
    random start: an image with no gradient at all stays where it is. Costs `steps` gradient passes and 2 forward
    passes.

    Raises ValueError on images outside [0, 1], labels that do not fit images or model, upper outside (0, 1], steps < 1
    or an unknown loss.
    """
    check_inputs(images, labels)
    check_at_least("steps", steps, 1)
    if not 0 < upper <= 1:
        raise ValueError(f"upper must be above 0 and at most 1, got {upper}")
    if loss not in ("cross_entropy", "margin"):
        raise ValueError(f'loss must be "cross_entropy" or "margin", got {loss!r}')
    sign = -1 if targeted else 1

    def followed(logits: Tensor, labels: Tensor) -> Tensor:
        return sign * (cross_entropy if loss == "cross_entropy" else margin)(logits, labels)

    def wins_by(logits: Tensor, labels: Tensor) -> Tensor:
        return sign * margin(logits, labels)

    with attacking(model, images, labels) as (classify, x, y):
        closest = Closest(x, linf_norm)
        iterate, radius = x, x.new_full((len(x),), upper)
        for i in range(steps + 1):
            with torch.set_grad_enabled(i < steps):  # the last iterate is judged, and moves no further
                values, logits, g = gradient_pass(classify, iterate, y, followed if i else wins_by)
            adversarial = is_adversarial(classify.verdict(iterate, logits), y, targeted)
            closest.offer(iterate, adversarial)
            progress = i / steps
            if i == 0:
                radius = (BEYOND * values.abs() / g.abs().flatten(1).sum(1)).nan_to_num(upper)
            else:
                change = _geometric(RADIUS, progress)
                # until an image is found for the first time its radius has far to go, so that stays coarse
                grown = radius * (1 + torch.where(closest.norms.isinf(), RADIUS[0], change))
                radius = torch.where(adversarial, radius, grown).minimum(closest.norms * (1 - change))
            radius = radius.clamp_max(upper)
            ε = column(radius, x)
            moved = iterate + _geometric(STEP, progress) * ε * g.sign()
            iterate = moved.maximum((x - ε).clamp_min(0)).minimum((x + ε).clamp_max(1))
        return closest.result(classify, y, targeted, queries=(steps + 1) * classify.passes)


def _geometric(ends: tuple[float, float], progress: float) -> float:
    """From the first of `ends` to the second at a constant ratio, as `progress` goes from 0 to 1."""
    first, last = ends
    return float(first * (last / first) ** progress)
