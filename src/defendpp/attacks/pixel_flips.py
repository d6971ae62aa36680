"""Pixel flips: an L2 attack on a classifier that sees only on which side of a threshold each pixel lies.

A budget buys a few pixels that cross the threshold; steps along a gradient spread it over all pixels, of which none
crosses. One pixel after the other, as in JSMA (Papernot et al. 2016, arXiv:1511.07528), here the one that raises the
margin most for what it costs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from defendpp.attacks.engine import (
    AttackResult,
    attacking,
    check_at_least,
    check_inputs,
    gradient_pass,
    is_adversarial,
    margin,
    radius_of_ball,
    recheck,
)
from defendpp.attacks.gradient_sign import BestSoFar, unbroken

NEARLY_FREE = 1e-6
"""What a pixel costs at least when costs are compared: those nearer to the threshold are all worth trying first."""


def pixel_flips(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | Float[Tensor, " batch"],
    threshold: float = 0.5,
    targeted: bool = False,
    steps: int = 100,
    candidates: int = 8,
) -> AttackResult:
    """Pixels moved just across `threshold`, one a step, while their squares add up to at most epsilon squared (L2).

    model, images, labels, epsilon, targeted: as for `bim`. The model's gradient must pass its threshold, as that of
    `purifier.Binarise` does with "identity": a step tries the `candidates` that promise most by it, by a forward pass
    each, and keeps the best. A pixel above the threshold goes to it, any other to the next number above.

    Returns the first adversarial image of each, or else the image of highest margin. Costs a gradient pass and
    `candidates` forward passes a step, and one to check success; images that are broken or whose budget is spent leave
    the batch from time to time.

    Raises ValueError as `bim` does, for candidates < 1, and for a threshold outside [0, 1).
    """
    check_inputs(images, labels)
    radius = radius_of_ball(epsilon, "l2", images)
    check_at_least("steps", steps, 1)
    check_at_least("candidates", candidates, 1)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), so that pixels can lie on both sides of it, got {threshold}")
    sign = -1 if targeted else 1

    with attacking(model, images, labels) as (classify, clean, labels):
        beyond = torch.nextafter(clean.new_tensor(threshold), clean.new_tensor(torch.inf))
        is_above = clean.flatten(1) > threshold
        across = torch.where(is_above, clean.new_tensor(threshold), beyond)
        price = (across - clean.flatten(1)).double().square()  # infinite for pixels that were moved
        budget = radius.double().square().flatten()
        up = torch.where(is_above, -1, 1)
        best = BestSoFar(clean, first=True)
        current = clean.clone()
        passes = torch.zeros_like(labels)
        rows = torch.arange(len(clean), device=clean.device)
        for _ in range(steps):
            height, logits, gradient = gradient_pass(classify, current[rows], labels[rows], margin)
            passes[rows] += 1
            best.offer(rows, current[rows], sign * height, is_adversarial(logits, labels[rows], targeted))
            passes[best.confirm(classify, labels, targeted)] += 1
            is_payable = price[rows] <= budget[rows, None]
            kept = unbroken(best.adversarial[rows] | ~is_payable.any(1))
            if kept is None:
                break
            rows, height, is_payable, gradient = rows[kept], height[kept], is_payable[kept], gradient[kept]
            images = current[rows]
            moved = torch.where(is_payable, across[rows], images.flatten(1))  # what cannot be paid stays as it is
            cost = price[rows].clamp_min(NEARLY_FREE)
            promise = (sign * up[rows] * gradient.flatten(1) / cost).masked_fill(~is_payable, -torch.inf)
            gains, pixels = [], promise.topk(min(candidates, promise.shape[1])).indices
            for pixel in pixels.split(1, dim=1):
                proposal = _with(images, moved, pixel)
                with torch.no_grad():
                    logits = classify(proposal)
                value = margin(logits, labels[rows])
                best.offer(rows, proposal, sign * value, is_adversarial(logits, labels[rows], targeted))
                gains.append(sign * (value - height)[:, None] / cost.gather(1, pixel))
                passes[rows] += 1
            gain = torch.cat(gains, 1).masked_fill(~is_payable.gather(1, pixels), -torch.inf)
            chosen = pixels.gather(1, gain.argmax(1, keepdim=True))
            current[rows] = _with(images, moved, chosen)
            paid = torch.where(is_payable, price[rows], 0).gather(1, chosen)
            budget[rows] -= paid[:, 0]
            price[rows] = price[rows].scatter(1, chosen, torch.inf)
        return AttackResult(best.images, recheck(classify, best.images, labels, targeted), passes + 1)


def _with(images: Tensor, moved: Tensor, pixel: Tensor) -> Tensor:
    """The images with one pixel each, of this number, as in `moved`, which has a row of pixels for each."""
    return images.flatten(1).scatter(1, pixel, moved.gather(1, pixel)).view_as(images)
