"""Fixed-budget attacks: one projected gradient step, and three schedules of it.

FGSM: Goodfellow et al. 2015, arXiv:1412.6572. BIM: Kurakin et al. 2017, arXiv:1607.02533. PGD: Madry et al. 2018,
arXiv:1706.06083.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from defendpp.attacks.engine import (
    AttackResult,
    Classifier,
    Loss,
    attacking,
    check_at_least,
    check_inputs,
    column,
    cross_entropy,
    gradient_pass,
    into_l2_ball,
    is_adversarial,
    margin,
    per_image,
    radius_of_ball,
    recheck,
    unit,
)

Norm = Literal["linf", "l2"]
LossName = Literal["cross_entropy", "margin"]
Rows = slice | Tensor

EVERYONE = slice(None)
COMPACT_EVERY = 5  # steps; each compaction waits for the device once


def fgsm(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | Float[Tensor, " batch"],
    targeted: bool = False,
    loss: LossName | Loss = "cross_entropy",
) -> AttackResult:
    """One step of size `epsilon` along the sign of the gradient: `pgd` with one step and no random start.

    Arguments, results and errors are those of `pgd`.
    """
    return pgd(
        model,
        images,
        labels,
        epsilon=epsilon,
        targeted=targeted,
        step_size=epsilon,
        steps=1,
        random_start=False,
        loss=loss,
    )


def bim(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | Float[Tensor, " batch"],
    targeted: bool = False,
    step_size: float | Float[Tensor, " batch"] | None = None,
    steps: int = 100,
    norm: Norm = "linf",
    loss: LossName | Loss = "cross_entropy",
    stop_early: bool = False,
) -> AttackResult:
    """The basic iterative method: `pgd` started at the image itself, by default with 100 steps of `epsilon` / 10.

    Arguments, results and errors are those of `pgd`.
    """
    return pgd(
        model,
        images,
        labels,
        epsilon=epsilon,
        targeted=targeted,
        step_size=step_size,
        steps=steps,
        random_start=False,
        norm=norm,
        loss=loss,
        stop_early=stop_early,
    )


def pgd(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | Float[Tensor, " batch"],
    targeted: bool = False,
    step_size: float | Float[Tensor, " batch"] | None = None,
    steps: int = 40,
    restarts: int = 1,
    random_start: bool = True,
    norm: Norm = "linf",
    loss: LossName | Loss = "cross_entropy",
    stop_early: bool = False,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Projected gradient ascent on the loss inside the ball of radius `epsilon` around each image.

    model: images in [0, 1] to logits; left as found. images: in [0, 1]. labels: the true classes, or the wanted ones if
    `targeted` (the loss then descends). epsilon: radius in pixel units, one number or one per image. step_size: pixel
    units, one number or one per image; epsilon / 10 by default. norm: "linf" (step along the sign of the gradient) or
    "l2" (along the gradient scaled to norm 1). loss: "cross_entropy", "margin" (best other logit minus the labelled
    one), or a function of (logits, labels) to one loss per image. restarts: independent random starts, uniform in the
    ball. generator: draws them; by default a generator of seed 0 at every call.

    Returns for each image the adversarial iterate of highest loss, and where none is adversarial the iterate of highest
    loss. Iterates are the points after each step, of every restart; a start counts only if it is itself adversarial.
    Images misclassified from the start are attacked like the others. Costs `restarts` * `steps` gradient passes,
    `restarts` forward passes for the last iterates and one to check success.

    stop_early: return the first adversarial iterate instead, and drop broken images from the batch from time to time,
    so that `queries` differs between images (it counts the passes until an image has left).

    Raises ValueError on images outside [0, 1], labels that do not fit images or model, a negative or non-finite epsilon
    or step_size, an L∞ epsilon above 1, steps or restarts < 1, several restarts without a random start, or an unknown
    norm or loss.
    """
    check_inputs(images, labels)
    radius = radius_of_ball(epsilon, norm, images)
    size = radius / 10 if step_size is None else per_image("step_size", step_size, images)
    check_at_least("steps", steps, 1)
    check_at_least("restarts", restarts, 1)
    if restarts > 1 and not random_start:
        raise ValueError(
            f"restarts must be 1 without a random start, which would repeat the same attack, got {restarts}"
        )
    objective = _objective(loss, targeted)
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    with attacking(model, images, labels) as (classify, clean, labels):
        # an L2 ball lies inside the L-infinity ball of its radius, so the same bounds hold for both
        lower, upper = (clean - radius).clamp_min(0), (clean + radius).clamp_max(1)
        best = BestSoFar(clean, first=stop_early)
        queries = torch.zeros_like(labels)
        rows: Rows | None = EVERYONE
        for _ in range(restarts):
            iterate = uniform_start(clean, radius, norm, generator) if random_start else clean.clone()
            for step in range(steps + 1):
                if stop_early and step % COMPACT_EVERY == 0:
                    queries[best.confirm(classify, labels, targeted)] += 1
                    rows = unbroken(best.adversarial)
                if rows is None:
                    break
                current, y = iterate[rows], labels[rows]
                with torch.set_grad_enabled(step < steps):  # the last iterate is judged, and moves no further
                    values, logits, gradient = gradient_pass(classify, current, y, objective)
                adversarial = is_adversarial(logits, y, targeted)
                if step == 0:
                    values = values.where(adversarial, -torch.inf)
                best.offer(rows, current, values, adversarial)
                queries[rows] += 1
                moved = _step(current, gradient, clean[rows], radius[rows], size[rows], norm)
                iterate[rows] = moved.clamp(lower[rows], upper[rows])
        return AttackResult(best.images, recheck(classify, best.images, labels, targeted), queries + 1)


class BestSoFar:
    """Per image the iterate to return: any adversarial one before all others, then the highest loss, or the first."""

    def __init__(self, images: Tensor, first: bool) -> None:
        self.first = first
        self.images = images.clone()
        self.values = images.new_full((len(images),), -torch.inf)
        self.adversarial = torch.zeros_like(self.values, dtype=torch.bool)
        self.confirmed: Tensor | None = None

    def offer(self, rows: Rows, images: Tensor, values: Tensor, adversarial: Bool[Tensor, " rows"]) -> None:
        """Keep of these iterates of `rows` those that are better than what is held."""
        held = self.adversarial[rows]
        higher = values > self.values[rows]
        if self.first:
            higher = higher & ~(held if self.confirmed is None else self.confirmed[rows])
        better = torch.where(adversarial == held, higher, adversarial)
        self.images[rows] = torch.where(column(better, images), images, self.images[rows])
        self.values[rows] = torch.where(better, values, self.values[rows])
        self.adversarial[rows] = held | adversarial

    def confirm(self, classify: Classifier, labels: Tensor, targeted: bool) -> Rows:
        """Ask the original about new claims made in bfloat16; those refused are attacked again. The rows asked about.

        Until it is confirmed the first adversarial iterate gives way to one of higher loss, which is likelier to be.
        """
        if not classify.bfloat16:
            return slice(0)
        if self.confirmed is None:
            self.confirmed = torch.zeros_like(self.adversarial)
        rows = (self.adversarial & ~self.confirmed).nonzero()[:, 0]
        self.adversarial[rows] = self.confirmed[rows] = recheck(classify, self.images[rows], labels[rows], targeted)
        return rows


def unbroken(adversarial: Bool[Tensor, " batch"]) -> Rows | None:
    """The rows still to attack, or None; the batch is only ever halved, so that the device sees few distinct sizes.

    Broken images fill up the last half: they cost queries, and what is held for them no longer changes.
    """
    size, remaining = len(adversarial), int((~adversarial).sum())
    if remaining == 0:
        return None
    while remaining <= size // 2:
        size //= 2
    if size == len(adversarial):
        return EVERYONE
    return adversarial.byte().argsort(stable=True)[:size]


def _objective(loss: str | Loss, targeted: bool) -> Loss:
    """What the attack ascends: the loss of the true class, or minus the loss of the wanted class."""
    named: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin}
    if isinstance(loss, str) and loss not in named:
        raise ValueError(f'loss must be "cross_entropy", "margin" or a function of (logits, labels), got {loss!r}')
    function = named[loss] if isinstance(loss, str) else loss
    if not targeted:
        return function
    return lambda logits, labels: -function(logits, labels)


def uniform_start(clean: Tensor, radius: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """Uniform in the ball around each image, then clipped to [0, 1]."""
    noise = torch.empty(clean.shape, dtype=clean.dtype, device=generator.device)
    if norm == "linf":
        offset = noise.uniform_(-1, 1, generator=generator).to(clean.device)
    else:
        # uniform on the sphere, and a radius whose n-th power is uniform
        direction = unit(noise.normal_(generator=generator).to(clean.device))
        depth = torch.empty(len(clean), dtype=clean.dtype, device=generator.device)
        depth = depth.uniform_(generator=generator).to(clean.device)
        offset = direction * column(depth ** (1 / max(1, clean[:1].numel())), clean)
    return (clean + radius * offset).clamp(0, 1)


def _step(images: Tensor, gradient: Tensor, clean: Tensor, radius: Tensor, size: Tensor, norm: Norm) -> Tensor:
    """One step uphill of length `size`; for L2 also back into the ball, for L-infinity the caller's bounds do that."""
    if norm == "linf":
        return images + size * gradient.sign()
    return into_l2_ball(images + size * unit(gradient), clean, radius)
