"""Auto-PGD: projected gradient ascent with momentum that chooses its own step sizes.

Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
arXiv:2003.01690: algorithm 1, and the DLR losses of its section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from defendpp.attacks.engine import (
    AttackResult,
    Loss,
    attacking,
    check_at_least,
    check_inputs,
    check_start,
    column,
    cross_entropy,
    gradient_pass,
    into_l2_ball,
    is_adversarial,
    margin,
    radius_of_ball,
    recheck,
    unit,
)
from defendpp.attacks.gradient_sign import COMPACT_EVERY, BestSoFar, Norm, Rows, unbroken, uniform_start

AutoLoss = Literal["cross_entropy", "margin", "dlr"]

MOMENTUM = 0.75  # the paper's alpha: the share of the gradient step, 0.25 being that of the step before
RHO = 0.75  # share of steps that must have raised the loss for the step size to stay


def auto_pgd(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | Float[Tensor, " batch"],
    norm: Norm = "linf",
    targeted: bool = False,
    targets: Int[Tensor, " batch"] | None = None,
    loss: AutoLoss | Loss = "cross_entropy",
    steps: int = 100,
    restarts: int = 1,
    start: Float[Tensor, "batch *shape"] | None = None,
    stop_early: bool = False,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Auto-PGD in the ball of radius `epsilon`: its step starts at 2 `epsilon` and is halved where it stops to pay.

    model, images, labels, epsilon, norm, targeted, stop_early, generator: as for `pgd`. loss: "cross_entropy", "margin"
    (best other logit minus the labelled one), "dlr" (the margin over the distance of the highest and the third highest
    logit, so that the scale of the logits does not matter) or a function of (logits, labels) to one loss per image.
    targets: for each image a class to approach, while any class but the label is still a success: with "dlr" the
    targeted DLR loss of the paper. restarts: independent starts, uniform in the ball. start: where the first of them
    begins instead, after projection into the ball.

    Returns for each image the adversarial iterate of highest loss, and where none is adversarial the iterate of highest
    loss; with stop_early the first adversarial one. Costs `restarts` * `steps` gradient passes, `restarts` forward
    passes for the last iterates and one to check success.

    Raises ValueError as `pgd` does, for "dlr" with fewer than 3 classes (4 with targets), for targets along with
    `targeted` or a loss of one's own, and for a start of another shape than the images.
    """
    check_inputs(images, labels)
    radius = radius_of_ball(epsilon, norm, images)
    check_at_least("steps", steps, 1)
    check_at_least("restarts", restarts, 1)
    check_start(start, images)
    if targets is not None:
        if targeted or not isinstance(loss, str):
            raise ValueError(
                "targets need a named loss and targeted=False; with targeted=True the labels are the targets"
            )
        if targets.shape != labels.shape:
            raise ValueError(
                f"targets must be one class index per image, got shape {tuple(targets.shape)} for {len(images)} images"
            )
        check_inputs(images, targets)
    ascended = _ascended(loss, targeted)
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    known = labels if targets is None else torch.maximum(labels, targets)  # the model must know all these classes
    with attacking(model, images, known) as (classify, clean, _):
        labels, targets = labels.clone().long(), None if targets is None else targets.clone().long()
        best = BestSoFar(clean, first=stop_early)
        queries = torch.zeros_like(labels)
        reviews = _reviews(steps)
        for restart in range(restarts):
            begin = uniform_start(clean, radius, norm, generator)
            if restart == 0 and start is not None:
                begin = _project(start.detach().clone(), clean, radius, norm)
            rows = torch.arange(len(clean), device=clean.device)
            climb = _climb(clean, radius, labels, targets, begin)
            for step in range(steps + 1):
                if step % COMPACT_EVERY == 0 and (stop_early or not len(rows)):
                    queries[best.confirm(classify, labels, targeted)] += 1
                    kept = unbroken(best.adversarial[rows])
                    if kept is None:
                        break
                    rows = rows[kept]
                    climb.keep(kept)
                objective = partial(ascended, targets=climb.targets)
                with torch.set_grad_enabled(step < steps):  # the last iterate is judged, and moves no further
                    values, logits, gradient = gradient_pass(classify, climb.iterate, climb.labels, objective)
                best.offer(rows, climb.iterate, values, is_adversarial(logits, climb.labels, targeted))
                queries[rows] += 1
                climb.arrive(values, gradient)
                if step in reviews:
                    climb.review(reviews[step])
                climb.move(norm, MOMENTUM if step else 1.0)
        return AttackResult(best.images, recheck(classify, best.images, labels, targeted), queries + 1)


@dataclass
class _Climb:
    """The ascent of each image: one row of every tensor, so that the images can be told apart and left out."""

    clean: Tensor
    radius: Tensor
    labels: Tensor
    targets: Tensor | None
    iterate: Tensor
    previous: Tensor
    value: Tensor
    """Of the iterate; the gradient too."""
    gradient: Tensor
    highest: Tensor
    """The iterate of highest value so far, with its value and gradient."""
    highest_value: Tensor
    highest_gradient: Tensor
    size: Tensor
    """Step size in pixel units, a column."""
    rises: Tensor
    """Steps since the last review that raised the value."""
    halved: Tensor
    """Whether the last review halved the step size."""
    reviewed_value: Tensor
    """The highest value at the last review."""

    def keep(self, rows: Rows) -> None:
        """Forget all other images."""
        for each in fields(self):
            held = getattr(self, each.name)
            setattr(self, each.name, None if held is None else held[rows])

    def arrive(self, values: Tensor, gradient: Tensor) -> None:
        """Take down what was found at the iterate."""
        self.rises = self.rises + (values > self.value)
        self.value, self.gradient = values, gradient
        higher = values > self.highest_value
        self.highest_value = values.where(higher, self.highest_value)
        higher = column(higher, gradient)
        self.highest = self.iterate.where(higher, self.highest)
        self.highest_gradient = gradient.where(higher, self.highest_gradient)

    def review(self, steps: int) -> None:
        """Halve the step and go back to the highest point where too few of the last `steps` steps rose (condition 1 of
        the paper), or where the highest value is that of the last review, which did not halve (condition 2)."""
        halve = (self.rises < RHO * steps) | (~self.halved & (self.highest_value == self.reviewed_value))
        self.value = self.highest_value.where(halve, self.value)
        back = column(halve, self.iterate)
        self.iterate = self.highest.where(back, self.iterate)
        self.gradient = self.highest_gradient.where(back, self.gradient)
        self.size = (self.size / 2).where(back, self.size)
        self.rises, self.halved, self.reviewed_value = torch.zeros_like(self.rises), halve, self.highest_value

    def move(self, norm: Norm, momentum: float) -> None:
        """One step: uphill by `size`, of which `momentum` is taken, and the rest of the step before."""
        direction = self.gradient.sign() if norm == "linf" else unit(self.gradient)
        uphill = _project(self.iterate + self.size * direction, self.clean, self.radius, norm)
        moved = self.iterate + momentum * (uphill - self.iterate) + (1 - momentum) * (self.iterate - self.previous)
        self.previous, self.iterate = self.iterate, _project(moved, self.clean, self.radius, norm)


def _climb(clean: Tensor, radius: Tensor, labels: Tensor, targets: Tensor | None, start: Tensor) -> _Climb:
    """The ascent of every image before its first step."""
    number = clean.new_zeros(len(clean))
    return _Climb(
        clean=clean,
        radius=radius,
        labels=labels,
        targets=targets,
        iterate=start,
        previous=start,
        value=number + torch.inf,  # nothing rises above it, and the start is no rise
        gradient=torch.zeros_like(clean),
        highest=start,
        highest_value=number - torch.inf,
        highest_gradient=torch.zeros_like(clean),
        size=2 * radius,
        rises=number,
        halved=number.bool(),
        reviewed_value=number - torch.inf,
    )


def _reviews(steps: int) -> dict[int, int]:
    """The steps after which step sizes are reviewed, each with the number of steps since the one before.

    Section 3.2 of the paper, in hundredths of all steps: 22, then always 3 less than the time before, but at least 6.
    """
    reviews, last, place, pause = {0: 0}, 0, 22, 22
    while place <= 100:
        at = -(-place * steps // 100)
        if at > last:
            reviews[at] = at - last
        last, pause = at, max(pause - 3, 6)
        place += pause
    return reviews


def _project(images: Tensor, clean: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """Into the ball, then into [0, 1], which leads no farther from the clean image."""
    if norm == "linf":
        return images.clamp(clean - radius, clean + radius).clamp(0, 1)
    return into_l2_ball(images, clean, radius).clamp(0, 1)


def dlr(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], targets: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, " batch"]:
    """Difference of logits ratio of each image, without unit: the margin over a spread of the highest logits.

    Without targets: highest other logit minus the labelled one, over the highest minus the
    third highest. With targets: the target's logit minus the labelled one, over the highest minus the
    mean of the third and fourth highest. Raises ValueError where there are not so many classes.
    """
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        how = "without targets" if targets is None else "with targets"
        raise ValueError(f'loss "dlr" needs at least {needed} classes {how}, and the model has {logits.shape[1]}')
    top = logits.topk(needed, dim=1).values
    spread = top[:, 0] - top[:, 2:].mean(1)
    return _margin(logits, labels, targets) / spread.clamp_min(torch.finfo(logits.dtype).tiny)


def _margin(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    if targets is None:
        return margin(logits, labels)
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def _cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    return cross_entropy(logits, labels) if targets is None else -cross_entropy(logits, targets)


def _ascended(loss: str | Loss, targeted: bool) -> Callable[..., Tensor]:
    """What the attack ascends, of (logits, labels, targets): the loss of the true class, or minus the wanted one's."""
    named: dict[str, Callable[..., Tensor]] = {"cross_entropy": _cross_entropy, "margin": _margin, "dlr": dlr}
    if isinstance(loss, str) and loss not in named:
        raise ValueError(
            f'loss must be "cross_entropy", "margin", "dlr" or a function of (logits, labels), got {loss!r}'
        )
    sign = -1 if targeted else 1
    if isinstance(loss, str):
        function = named[loss]
        return lambda logits, labels, targets: sign * function(logits, labels, targets)
    return lambda logits, labels, targets: sign * loss(logits, labels)
