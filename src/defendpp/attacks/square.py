"""Square Attack: random search for networks whose gradients say little.

Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search",
arXiv:1912.00049, algorithms 1 and 2.
"""

from math import prod, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from defendpp.attacks.engine import (
    AttackResult,
    attacking,
    check_at_least,
    check_inputs,
    check_start,
    is_adversarial,
    margin,
    radius_of_ball,
    recheck,
)
from defendpp.attacks.gradient_sign import COMPACT_EVERY, BestSoFar, unbroken

SHARE = 0.8  # of the pixels that the first squares cover
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of that share, in ten-thousandths of all queries


def square(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | Float[Tensor, " batch"],
    targeted: bool = False,
    queries: int = 5000,
    start: Float[Tensor, "batch *shape"] | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """L-infinity random search on the margin: squares of pixels are set to an end of the ball, and kept if that helps.

    model, images, labels, epsilon, targeted, generator: as for `pgd`; the last two axes of the images are their height
    and width (one of a single axis has height 1), the others channels. queries: squares to try, after the start. start:
    where to begin, after projection into the ball; by default at vertical stripes of either end. From the best image of
    a gradient attack it finds what both miss alone.

    Returns the first adversarial image of each, or else the image of highest margin. Costs a forward pass a query, one
    for the start and one to check success; broken images leave the batch from time to time.

    Raises ValueError as `pgd` does, for queries < 1 and for a start of another shape than the images.
    """
    check_inputs(images, labels)
    radius = radius_of_ball(epsilon, "linf", images)
    check_at_least("queries", queries, 1)
    check_start(start, images)
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    with attacking(model, images, labels) as (classify, clean, labels), torch.no_grad():
        lower, upper = (clean - radius).clamp_min(0), (clean + radius).clamp_max(1)
        best = BestSoFar(clean, first=True)
        passes = torch.zeros_like(labels)
        rows = torch.arange(len(clean), device=clean.device)
        for query in range(queries + 1):
            if query % COMPACT_EVERY == 0:
                passes[best.confirm(classify, labels, targeted)] += 1
                kept = unbroken(best.adversarial[rows])
                if kept is None:
                    break
                rows = rows[kept]
            low, high = lower[rows], upper[rows]
            if query:
                proposal = _with_square(best.images[rows], low, high, _share(query / queries), generator)
            elif start is None:
                proposal = _stripes(low, high, generator)
            else:
                proposal = start[rows].detach().clamp(low, high)
            logits = classify(proposal)
            height = margin(logits, labels[rows])
            adversarial = is_adversarial(logits, labels[rows], targeted)
            best.offer(rows, proposal, -height if targeted else height, adversarial)
            passes[rows] += 1
        return AttackResult(best.images, recheck(classify, best.images, labels, targeted), passes + 1)


def _share(progress: float) -> float:
    """The share of the pixels that a square covers, after this share of the queries."""
    return float(SHARE / 2 ** sum(progress > place / 10_000 for place in HALVINGS))


def _stripes(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Columns of pixels at either end of the ball, the same along the whole height of a channel."""
    channels, height, width = _canvas(low)
    shape = (-1, channels, height, width)
    up = _uniform((len(low), channels, 1, width), low, generator) < 0.5
    return torch.where(up, high.reshape(shape), low.reshape(shape)).reshape(low.shape)


def _with_square(images: Tensor, low: Tensor, high: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The images with one square each, anywhere, of which every channel is set to either end of the ball."""
    channels, height, width = _canvas(images)
    tall = min(height, max(1, round(sqrt(share * height * width))))
    wide = min(width, max(1, round(share * height * width / tall)))
    corner = _uniform((len(images), 2), images, generator)
    top, left = (corner * corner.new_tensor([height - tall + 1, width - wide + 1])).long()[:, :, None].unbind(1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((y >= top) & (y < top + tall))[:, None, :, None] & ((x >= left) & (x < left + wide))[:, None, None, :]
    up = _uniform((len(images), channels, 1, 1), images, generator) < 0.5
    shape = (-1, channels, height, width)
    painted = torch.where(up, high.reshape(shape), low.reshape(shape))
    return torch.where(inside, painted, images.reshape(shape)).reshape(images.shape)


def _canvas(images: Tensor) -> tuple[int, int, int]:
    """Channels, height and width."""
    *channels, height, width = (1, *images.shape[1:])
    return prod(channels), height, width


def _uniform(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=images.dtype).to(images.device)
