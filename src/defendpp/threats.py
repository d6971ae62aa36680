"""Attacks with all their settings, as evaluations and records name them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from defendpp import attacks
from defendpp.attacks import AttackResult
from defendpp.attacks.engine import attacking, check_largest, check_norm, recheck
from defendpp.attacks.gradient_sign import Norm

NOT_COUNTED = 0
"""Queries of an attack that does not count them."""


@dataclass(frozen=True)
class Attack:
    """An attack with all its settings."""

    name: str
    norm: str
    epsilon: float | None
    """Budget in pixel units; None for a minimal-norm attack."""
    settings: Mapping[str, Any]
    """Everything else that determines it, for the records."""
    run: Callable[..., AttackResult] = field(repr=False)
    """(model, images, labels) to `AttackResult`; takes a `generator` too where `is_random`."""
    is_random: bool

    def __str__(self) -> str:
        if self.epsilon is None:
            return self.name
        return f"{self.name} {'L2 ' if self.norm == 'l2' else ''}{self.epsilon:g}" + (
            f", {self.settings['levels']} levels" if "levels" in self.settings else ""
        )


def fgsm(epsilon: float) -> Attack:
    """FGSM with an L∞ budget in pixel units."""
    return _fixed("fgsm", epsilon, {}, attacks.fgsm)


def bim(epsilon: float, *, steps: int = 100, relative_step: float | None = None) -> Attack:
    """BIM with an L∞ budget in pixel units; each step is `relative_step` of the budget (default: `usual_step`)."""
    settings = {"steps": steps, "relative_step": relative_step or usual_step(steps)}
    return _fixed("bim", epsilon, settings, attacks.bim)


def pgd(
    epsilon: float,
    *,
    steps: int = 40,
    relative_step: float | None = None,
    restarts: int = 1,
    loss: str = "cross_entropy",
    norm: Norm = "linf",
    stop_early: bool = False,
) -> Attack:
    """PGD with a random start and an L∞ or L2 budget in pixel units; steps as those of `bim`."""
    settings = {
        "steps": steps,
        "relative_step": relative_step or usual_step(steps),
        "restarts": restarts,
        "loss": loss,
        "stop_early": stop_early,
    }
    return _fixed("pgd", epsilon, settings, partial(attacks.pgd, norm=norm), norm=norm, is_random=True)


def auto_pgd(
    epsilon: float,
    *,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "cross_entropy",
    norm: Norm = "linf",
    stop_early: bool = False,
) -> Attack:
    """Auto-PGD with an L∞ or L2 budget in pixel units; it finds its step sizes itself."""
    settings = {"steps": steps, "restarts": restarts, "loss": loss, "stop_early": stop_early}
    return _fixed("auto_pgd", epsilon, settings, partial(attacks.auto_pgd, norm=norm), norm=norm, is_random=True)


def cascade(
    epsilon: float,
    *,
    first_steps: int = 10,
    steps: int = 75,
    restarts: int = 1,
    targets: int = 4,
    squares: int = 300,
    norm: Norm = "linf",
) -> Attack:
    """From cheap to expensive until an image falls, with an L∞ or L2 budget in pixel units."""
    settings = {
        "first_steps": first_steps,
        "steps": steps,
        "restarts": restarts,
        "targets": targets,
        "squares": squares,
    }
    return _fixed("cascade", epsilon, settings, partial(attacks.cascade, norm=norm), norm=norm, is_random=True)


def square(epsilon: float, *, queries: int = 5000) -> Attack:
    """Square: random search without gradients, with an L∞ budget in pixel units."""
    return _fixed("square", epsilon, {"queries": queries}, attacks.square, is_random=True)


def pixel_flips(epsilon: float, *, threshold: float = 0.5, steps: int = 100, candidates: int = 8) -> Attack:
    """Pixels moved across the threshold in front of a classifier, with an L2 budget in pixel units."""
    settings = {"threshold": threshold, "steps": steps, "candidates": candidates}
    return _fixed("pixel_flips", epsilon, settings, attacks.pixel_flips, norm="l2")


def auto_attack(epsilon: float, *, norm: Norm = "linf") -> Attack:
    """AutoAttack standard (Croce and Hein 2020, arXiv:2003.01690), as the package pyautoattack has it.

    Auto-PGD, targeted Auto-PGD, targeted FAB and Square with an L∞ or L2 budget in pixel units: the figure that others
    report. Its run raises `ModuleNotFoundError` where the package is not installed.
    """
    return _fixed("auto_attack", epsilon, {"version": "standard"}, partial(_run_auto_attack, norm=norm), norm=norm)


def _run_auto_attack(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, norm: str, version: str
) -> AttackResult:
    try:
        library: Any = import_module("pyautoattack")
    except ModuleNotFoundError:
        raise ModuleNotFoundError("AutoAttack needs a package: pip install 'defendpp[autoattack]'") from None
    made = images.clone()
    with attacking(model, images, labels) as (classify, clean, labels):
        with torch.no_grad():
            is_right = classify(clean, exactly=True).argmax(1) == labels  # it leaves the others alone
        if is_right.any():
            with _quiet("auto-attack"), torch.random.fork_rng():  # it seeds the global generator
                name = {"linf": "Linf", "l2": "L2"}[norm]
                attack = library.AutoAttack(model, norm=name, eps=epsilon, seed=0, version=version, device=clean.device)
                made[is_right] = attack.run_standard_evaluation(clean[is_right], labels[is_right])[0]
        change = made - clean
        size = change.abs().flatten(1).amax(1) if norm == "linf" else change.flatten(1).norm(dim=1)
        is_within = size <= epsilon * (1 + 1e-4) + 1e-6
        made = torch.where(is_within.view(-1, *[1] * (made.ndim - 1)), made, clean).clamp(0, 1)
        success = recheck(classify, made, labels, targeted=False)
        return AttackResult(made, success, torch.full_like(labels, NOT_COUNTED))


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Errors only from this logger."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)


def smoothing(sigma: float, *, samples: int = 10_000, alpha: float = 0.001) -> Attack:
    """No attack but its opposite, `certify.certify` under the name that its records have; it cannot be run."""
    settings = {"sigma": sigma, "samples": samples, "alpha": alpha}
    return Attack("smoothing", "l2", None, settings, _refuse, is_random=False)


def _refuse(*_: object, **__: object) -> AttackResult:
    raise ValueError("randomised smoothing attacks nothing: call evaluation.certified_records")


def carlini_wagner(
    *, search_steps: int = 5, iterations: int = 20, learning_rate: float = 0.15, initial_constant: float = 1.0
) -> Attack:
    """C&W, smallest L2; by default the paper's 5 x 20."""
    run = partial(
        attacks.carlini_wagner,
        search_steps=search_steps,
        iterations=iterations,
        learning_rate=learning_rate,
        initial_constant=initial_constant,
    )
    return Attack("carlini_wagner", "l2", None, run.keywords, run, is_random=False)


def ddn(*, steps: int = 100, levels: int | None = 256) -> Attack:
    """DDN, smallest L2; by default 100 steps on images of 8 bits."""
    run = partial(attacks.ddn, steps=steps, levels=levels)
    return Attack("ddn", "l2", None, run.keywords, run, is_random=True)


def minimal_pgd(
    *, steps: int = 60, upper: float = 1.0, loss: Literal["cross_entropy", "margin"] = "cross_entropy"
) -> Attack:
    """PGD at the smallest L∞ radius of each image: the whole security curve from one run."""
    run = partial(attacks.minimal_pgd, steps=steps, upper=upper, loss=loss)
    return Attack("minimal_pgd", "linf", None, run.keywords, run, is_random=False)


def rounded(attack: Attack, levels: int = 256) -> Attack:
    """`attack`, its images then rounded to `levels` values a pixel, as a file of 8 bits holds them (256).

    Rounding may leave the ball by half a level where 255 epsilon is no whole number.
    """
    run = partial(_run_rounded, attack.run, levels)
    return replace(attack, settings={**attack.settings, "levels": levels}, run=run)


def _run_rounded(
    run: Callable[..., AttackResult], levels: int, model: nn.Module, images: Tensor, labels: Tensor, **random: Any
) -> AttackResult:
    result = run(model, images, labels, **random)
    stored = (result.images * (levels - 1)).round() / (levels - 1)
    with attacking(model, stored, labels) as (classify, stored, labels):
        return AttackResult(stored, recheck(classify, stored, labels, targeted=False), result.queries + 1)


def _fixed(
    name: str,
    epsilon: float,
    settings: dict[str, Any],
    function: Callable[..., AttackResult],
    *,
    norm: str = "linf",
    is_random: bool = False,
) -> Attack:
    check_budget(name, norm, epsilon, settings)
    arguments = {key: value for key, value in settings.items() if key != "relative_step"}
    if "relative_step" in settings:
        arguments["step_size"] = settings["relative_step"] * epsilon
    return Attack(name, norm, epsilon, settings, partial(function, epsilon=epsilon, **arguments), is_random)


def check_budget(name: str, norm: str, epsilon: float, settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a norm or a budget that is none, and for steps or restarts below 1 in `settings`."""
    check_norm(norm)
    if not 0 <= epsilon < float("inf"):
        raise ValueError(f"epsilon must be at least 0 and finite, in pixel units of [0, 1], not {epsilon}")
    check_largest(epsilon, norm)
    for key in ("first_steps", "steps", "restarts"):
        if settings.get(key, 1) < 1:
            raise ValueError(f"{name} needs at least 1 of {key}, not {settings[key]}")


def usual_step(steps: int) -> float:
    """A tenth of the budget, or more where so few steps could not cross it two and a half times."""
    return max(0.1, 2.5 / max(1, steps))


def usual_epsilon(image_shape: tuple[int, int, int]) -> float:
    """The paper's L∞ budget (section 4.1): 0.2 for MNIST, 0.05 for CIFAR-10, 0.01 for ImageNet, told by the images."""
    channels, height, _ = image_shape
    if height >= 64:
        return 0.01
    return 0.2 if channels == 1 else 0.05
