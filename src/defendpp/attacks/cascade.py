"""A cascade of attacks from cheap to expensive, each on those images alone that have withstood all before it.

In the spirit of AutoAttack (Croce & Hein 2020, arXiv:2003.01690), each of whose members spends as much on an image that
falls at the first step as on one that never does.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from defendpp.attacks.auto_pgd import auto_pgd
from defendpp.attacks.engine import (
    AttackResult,
    attacking,
    check_at_least,
    check_inputs,
    column,
    is_adversarial,
    margin,
    radius_of_ball,
    recheck,
)
from defendpp.attacks.gradient_sign import Norm
from defendpp.attacks.square import square


def cascade(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | Float[Tensor, " batch"],
    norm: Norm = "linf",
    first_steps: int = 10,
    steps: int = 75,
    restarts: int = 1,
    targets: int = 4,
    squares: int = 300,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Untargeted, for a robust accuracy that one can believe at a fraction of the cost of AutoAttack.

    Its stages are the clean prediction and then `auto_pgd`: `first_steps` steps up the margin from the clean image;
    `restarts` times `steps` steps up the cross-entropy from random starts; `steps` steps up the targeted DLR loss, for
    each of the `targets` other classes with the highest logits on the clean image (of a model with 2 or 3 classes, for
    which that loss is not defined, up the margin); for L-infinity `squares` queries of `square`, which needs no
    gradients, from the best image that the others found.

    model, images, labels, epsilon, norm, generator: as for `auto_pgd`; a model made fast by `prepare` pays here.

    Returns an adversarial image where one was found, and otherwise, of what the stages returned, the image of highest
    margin (best other logit minus the labelled one). `queries` counts the passes spent on each image; those of an image
    end with the stage that broke it and the last check.

    Raises ValueError as `auto_pgd` does, and for first_steps, steps or restarts < 1 or targets or squares < 0.
    """
    check_inputs(images, labels)
    radius = radius_of_ball(epsilon, norm, images).flatten()
    check_at_least("first_steps", first_steps, 1)
    check_at_least("steps", steps, 1)
    check_at_least("restarts", restarts, 1)
    check_at_least("targets", targets, 0)
    check_at_least("squares", squares, 0)
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    with attacking(model, images, labels) as (classify, clean, labels):
        with torch.no_grad():
            logits = classify(clean, exactly=True)
        standing = ~is_adversarial(logits, labels, targeted=False)
        found, height, queries = clean.clone(), margin(logits, labels), torch.ones_like(labels)
        others = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
        towards = "dlr" if logits.shape[1] >= 4 else "margin"
        climb = partial(auto_pgd, norm=norm, stop_early=True)
        stages: list[tuple[Callable[..., AttackResult], dict[str, Tensor]]] = [  # attacks, and what they take per image
            (partial(climb, loss="margin", steps=first_steps), {"start": clean}),
            (partial(climb, loss="cross_entropy", steps=steps, restarts=restarts), {}),
            *((partial(climb, loss=towards, steps=steps), {"targets": rivals}) for rivals in others.T[:targets]),
        ]
        if norm == "linf" and squares:
            stages.append((partial(square, queries=squares), {"start": found}))
        for attack, given in stages:
            rows = standing.nonzero()[:, 0]
            if not len(rows):
                break
            each = {name: values[rows] for name, values in given.items()}
            result = attack(model, clean[rows], labels[rows], epsilon=radius[rows], generator=generator, **each)
            with torch.no_grad():
                reached = margin(classify(result.images), labels[rows])
            better = result.success | (reached > height[rows])
            found[rows] = result.images.where(column(better, found), found[rows])
            height[rows] = reached.where(better, height[rows])
            standing[rows] = ~result.success
            queries[rows] += result.queries + 1
        return AttackResult(found, recheck(classify, found, labels, targeted=False), queries + 1)
