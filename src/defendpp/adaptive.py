"""Attacks made for a defence by one who knows all of it.

Tramer et al. 2020, "On adaptive attacks to adversarial example defenses", arXiv:2002.08347: a defence is to be attacked
through every part it relies on. Defend++ relies on a bottleneck that holds the image's structure and no more, so that
`against_decoder` raises, beside the classification loss, how far the bottleneck or the rebuilt image moves. A purifier
relies on passing no gradient, so that `adapted` puts others in its place.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from defendpp import attacks
from defendpp.attacks import AttackResult, Prepared, prepare
from defendpp.attacks.engine import attacking, l2_norm, linf_norm, margin
from defendpp.attacks.gradient_sign import Norm
from defendpp.encoder import tap
from defendpp.objective import Defend
from defendpp.purifier import STAND_INS, Averaged, ComDefend, Purified
from defendpp.threats import Attack, check_budget, usual_step

Raised = Literal["bottleneck", "reconstruction"]
DRAWS = 10
"""Passes of a purifier that draws noise, for each gradient."""


def adapted(attack: Attack, model: nn.Module) -> Attack:
    """`attack` as it is, or, on a model behind a purifier, run through each of its `stand_ins`, as its settings say.

    Image by image the worst counts: the adversarial image, and of two the nearer in the attack's norm. Queries are
    those of all.
    """
    if "gradient" in attack.settings or attack.name == "square" or stand_ins(model) == [model]:
        return attack
    told = [*STAND_INS, *[f"{DRAWS} draws"] * _is_random(_original(model))]
    settings = {**attack.settings, "gradient": ", ".join(told)}
    return replace(attack, settings=settings, run=partial(_through_each, attack, []))


def _through_each(
    attack: Attack,
    ready: list[nn.Module],
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    **random: torch.Generator,
) -> AttackResult:
    """ready: the views made fast, kept here from the first call on."""
    if not ready:
        ready.extend(prepare(each, images[:8]) for each in stand_ins(model))
    size = l2_norm if attack.norm == "l2" else linf_norm
    best, *others = (attack.run(each, images, labels, **random) for each in ready)
    for other in others:
        is_nearer = (size(other.images - images) < size(best.images - images)).flatten()
        is_worse = other.success & (~best.success | is_nearer)
        worst = torch.where(is_worse.view(-1, *[1] * (images.ndim - 1)), other.images, best.images)
        best = AttackResult(worst, best.success | other.success, best.queries + other.queries)
    return best


def stand_ins(model: nn.Module) -> list[nn.Module]:
    """What an attacker follows the gradients of: the model itself, or, behind a purifier that passes none, views of it.

    Each has another gradient in that one's place, straight-through first, and the same logits; those of a purifier that
    draws noise are averaged over `DRAWS` passes. A `Purified` whose gradient was chosen stays as it is.
    """
    original = _original(model)
    if not (isinstance(original, Purified) and original.gradient == "exact"):
        return [model]
    views = [original.attacked_through(each) for each in STAND_INS]
    return [Averaged(each, DRAWS) for each in views] if _is_random(original) else [*views]


def _original(model: nn.Module) -> nn.Module:
    return model.original if isinstance(model, Prepared) else model


def _is_random(model: nn.Module) -> bool:
    purifier = model.purifier if isinstance(model, Purified) else None
    return isinstance(purifier, ComDefend) and purifier.test_noise > 0


def against_decoder(
    objectives: Sequence[Defend],
    epsilon: float,
    *,
    raised: Raised = "bottleneck",
    weight: float = 1.0,
    steps: int = 60,
    restarts: int = 1,
    norm: Norm = "linf",
) -> Attack:
    """PGD on the margin plus `weight` times how far a part of the auto-encoder moves; named "adaptive_RAISED".

    raised: "bottleneck", the deepest map that classifier and auto-encoder share, or "reconstruction", the rebuilt image
    of full size. Both by the squared distance from where the clean image has them, in relation to its squared norm.
    epsilon, norm: in pixel units. objectives: of the networks to be attacked, each built for its classifier; on a
    classifier that none was built for, there is no decoder to use, and the attack is PGD on the margin. The decoder is
    not attacked for its own sake: nobody looks at what it makes.

    Raises `ValueError` as the attacks of `threats` do.
    """
    check_budget(f"adaptive_{raised}", norm, epsilon, {"steps": steps, "restarts": restarts})
    settings = {
        "steps": steps,
        "restarts": restarts,
        "loss": f"margin + {weight:g} {raised}",
        "relative_step": usual_step(steps),
    }
    run = partial(
        _attack,
        tuple(objectives),
        raised=raised,
        weight=weight,
        epsilon=epsilon,
        steps=steps,
        step_size=usual_step(steps) * epsilon,
        restarts=restarts,
        norm=norm,
    )
    return Attack(f"adaptive_{raised}", norm, epsilon, settings, run, is_random=True)


def with_objectives(attack: Attack, objectives: Sequence[Defend]) -> Attack:
    """`attack`, which `against_decoder` made, with these objectives to use."""
    assert isinstance(attack.run, partial)
    return replace(attack, run=partial(_attack, tuple(objectives), **attack.run.keywords))


def decoder_for(attack: Attack, model: nn.Module) -> Defend | None:
    """Of the objectives that `against_decoder` gave this attack the one that was built for `model`, if any."""
    is_adaptive = isinstance(attack.run, partial) and attack.run.func is _attack
    return _built_for(model, attack.run.args[0]) if is_adaptive else None  # type: ignore[attr-defined]


def _built_for(model: nn.Module, objectives: Sequence[Defend]) -> Defend | None:
    return next((each for each in objectives if each.built_for is not None and each.built_for() is model), None)


def _attack(
    objectives: Sequence[Defend],
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    *,
    raised: Raised,
    weight: float,
    **settings: Any,
) -> AttackResult:
    original = _original(model)
    objective = _built_for(original, objectives)
    if objective is None:
        return attacks.pgd(model, images, labels, loss="margin", **settings)
    shown = _Shown(original, objective.to(images.device), raised)
    with attacking(shown, images, labels) as (classify, clean, _), torch.no_grad():
        classify(clean)
        usual = shown.part.flatten(1).clone()
    return attacks.pgd(shown, images, labels, loss=_loss(shown, usual, weight), **settings)


def _loss(shown: "_Shown", usual: Tensor, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Of logits and labels, for the images that `shown` was shown last: all of a batch, in its order."""
    size = usual.square().sum(1).clamp_min(1e-12)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        moved = (shown.part.flatten(1) - usual).square().sum(1) / size
        return margin(logits, labels) + weight * moved

    return loss


class _Shown(nn.Module):
    """The classifier; it keeps what the part of interest was in the last pass."""

    def __init__(self, classifier: nn.Module, objective: Defend, raised: Raised) -> None:
        super().__init__()
        self.classifier, self.objective, self.raised = classifier, objective, raised
        self.part = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        """The classifier's logits."""
        with tap(self.classifier, self.objective.shared) as maps:
            logits: Tensor = self.classifier(images)
        if self.raised == "bottleneck":
            self.part = maps[self.objective.shared[-1].name]
        else:
            self.part = self.objective.auto_encoder(images, maps)[0]
        return logits
