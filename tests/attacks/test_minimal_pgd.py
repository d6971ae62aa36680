"""The smallest L-infinity radius: known exactly on linear models, and never worse than PGD at the same radius."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from defendpp import records, threats
from defendpp.attacks import AttackResult, Prepared, minimal_pgd, pgd

Affine = Callable[[Tensor, Tensor], nn.Linear]
Digits = tuple[nn.Module, Tensor, Tensor]
INPUTS = 12


def distances(result: AttackResult, images: Tensor) -> Tensor:
    return (result.images - images).abs().flatten(1).amax(1)


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_distance_is_the_margin_over_the_l1_norm(
    targeted: bool, scale: float, affine: Affine, generator: torch.Generator
) -> None:
    """At any scale: here down to distances of about 1e-4."""
    direction = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
    images = 0.5 + scale * 0.02 * torch.randn(20, INPUTS, generator=generator, dtype=torch.float64)
    model = affine(
        torch.stack([-direction, direction]), torch.stack([torch.zeros_like(direction[0]), -direction.sum()])
    )
    logits = model(images).detach()
    exact = (logits[:, 1] - logits[:, 0]).abs() / (2 * direction.abs().sum())
    truth = logits.argmax(1)
    result = minimal_pgd(model, images, 1 - truth if targeted else truth, targeted=targeted)
    assert result.success.all()
    ratio = distances(result, images) / exact
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= 1.005


def test_the_distance_where_the_box_is_active(affine: Affine, generator: torch.Generator) -> None:
    direction = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
    images = torch.rand(20, INPUTS, generator=generator, dtype=torch.float64)
    images[:, :3] = images[:, :3].round()
    images = images[(images @ direction).argsort()[:10]]
    level = 0.5 * ((images @ direction).max() + direction.clamp_min(0).sum())
    model = affine(
        torch.stack([torch.zeros_like(direction), direction]), torch.stack([torch.zeros_like(level), -level])
    )
    low, high = torch.zeros(10, 1, dtype=torch.float64), torch.ones(10, 1, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        crossed = ((images + middle * direction.sign()).clamp(0, 1) @ direction >= level)[:, None]
        low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
    exact = high[:, 0]
    assert (exact > 1.02 * (level - images @ direction) / direction.abs().sum()).any(), "the box must matter"
    labels = torch.zeros(10, dtype=torch.long)
    result = minimal_pgd(model, images, labels)
    assert result.success.all()
    ratio = distances(result, images) / exact
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= 1.01
    upper = exact.median().item() + 0.02
    below = minimal_pgd(model, images, labels, upper=upper)
    assert torch.equal(below.success, exact < upper)
    assert 0 < below.success.sum() < 10
    assert torch.equal(below.images[~below.success], images[~below.success])


def test_one_run_breaks_what_a_run_at_each_budget_breaks(digits: Digits) -> None:
    network, images, labels = digits
    result = minimal_pgd(network, images, labels)
    assert result.success.all()
    reached = distances(result, images)
    shares = []
    for epsilon in (0.03, 0.06, 0.09, 0.12, 0.15, 0.2):
        fixed = pgd(network, images, labels, epsilon=epsilon, steps=40)
        shares.append((reached <= epsilon).float().mean() - fixed.success.float().mean())
    assert min(shares) >= -1 / len(images) - 1e-6  # at most one image of sixty


def test_an_image_already_adversarial_is_at_distance_zero(digits: Digits) -> None:
    network, images, _ = digits
    wrong = (network(images).argmax(1) + 1) % 10
    result = minimal_pgd(network, images, wrong)
    assert result.success.all()
    assert torch.equal(result.images, images)


def test_a_single_image_is_attacked_as_in_a_batch(digits: Digits) -> None:
    network, images, labels = copy.deepcopy(digits[0]).double(), digits[1][:3].double(), digits[2][:3]
    whole = distances(minimal_pgd(network, images, labels), images)
    for i in range(3):
        alone = minimal_pgd(network, images[i : i + 1], labels[i : i + 1])
        assert distances(alone, images[i : i + 1]).item() == pytest.approx(whole[i].item(), rel=1e-6)


def test_a_first_guess_far_too_small_still_gets_there() -> None:
    """A steep surface at the image that soon goes flat promises a boundary a thousand times nearer than it is."""

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            way = (x - 0.2).mean(1)
            gain = torch.where(way < 1e-4, 1e3 * way, 0.1 + way / 10)
            return torch.stack([torch.full_like(way, 0.15), gain], 1)

    images = torch.full((2, 5), 0.2)
    result = minimal_pgd(Bent(), images, torch.zeros(2, dtype=torch.long))
    assert result.success.all()
    assert distances(result, images).max() < 0.51  # exactly 0.5


def test_the_second_closest_stands_in_where_the_original_refuses_the_closest(digits: Digits) -> None:
    """A copy that sees the boundary a little too near: without it such an image would count as robust."""
    network, images, labels = digits
    right = network(images).argmax(1) == labels
    images, labels = images[right], labels[right]

    class Eager(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = network(x)
            return logits - 5e-4 * torch.nn.functional.one_hot(labels, 10)

    result = minimal_pgd(Prepared(network, Eager(), "planted", channels_last=False), images, labels)
    assert (network(result.images).argmax(1) != labels).equal(result.success)
    assert result.success.float().mean() > 0.9
    assert (result.queries == 63).all()


def test_records_draw_the_curve_from_one_run(digits: Digits) -> None:
    """An image at exactly the budget counts as broken, as it would for a fixed-budget attack."""
    network, images, labels = digits
    attack = threats.minimal_pgd(steps=20)
    result = attack.run(network, images, labels)
    reached = distances(result, images).double().numpy()
    predicted = network(images).argmax(1).numpy()
    rows = pd.DataFrame(
        {
            "network_id": "a", "data": "digits", "split": "test", "attack": attack.name, "norm": attack.norm,
            "knowledge": "white-box", "source_id": "a", "epsilon": np.nan, "image": np.arange(len(images)),
            "label": labels.numpy(), "clean_prediction": predicted, "success": result.success.numpy(), "l2": 9.0,
            "linf": reached,
        }
    )  # fmt: skip
    at = float(np.sort(reached)[40])
    curve = records.security_curve(rows, [0.0, at - 1e-9, at, 1.0])
    assert curve["value"].is_monotonic_decreasing
    assert curve["value"][0] == (predicted == labels.numpy()).mean()
    assert round((curve["value"][1] - curve["value"][2]) * len(images)) == 1
    assert curve["value"][3] == 0
    right = predicted == labels.numpy()
    assert records.median_distance(rows).median == pytest.approx(np.median(reached[right]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"upper": 0.0}, "upper must be above 0 and at most 1, got 0.0"),
        ({"upper": 1.5}, "upper must be above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(digits: Digits, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        minimal_pgd(*digits, **arguments)
