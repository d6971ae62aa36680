"""Pixel flips behind a threshold: the cheapest flips where they are known, and never beyond the budget."""

import re
from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defendpp.attacks import pgd, pixel_flips
from defendpp.purifier import Binarise, Purified

Affine = Callable[[Tensor, Tensor], nn.Linear]


def behind_a_threshold(classifier: nn.Module) -> Purified:
    """Images are rows of pixels, (batch, 1, 1, pixels)."""
    return Purified(Binarise(), nn.Sequential(nn.Flatten(), classifier), "identity")


def by_sign(affine: Affine, weight: Tensor) -> nn.Linear:
    """Class 1 against class 0 by the sign of weight * pixels."""
    return affine(torch.stack([-weight, weight]), weight.new_zeros(2))


def test_of_black_and_white_pixels_the_weightiest_are_flipped_and_no_more_than_needed(
    affine: Affine, generator: torch.Generator
) -> None:
    """Each costs a quarter, so that a budget buys a number of them: the best choice is known."""
    weight = torch.randn(30, generator=generator, dtype=torch.float64)
    flat = (torch.rand(40, 30, generator=generator, dtype=torch.float64) > 0.5).double()
    images = flat[:, None, None]
    model = behind_a_threshold(by_sign(affine, weight))
    labels = model(images).argmax(1).detach()
    toward = torch.where(labels == 1, 1, -1)[:, None]
    gains = (toward * weight * torch.where(flat > 0.5, 1, -1)).sort(dim=1, descending=True).values  # of each flip
    wanted = ((flat * weight).sum(1, keepdim=True) * toward - gains.cumsum(1) < 0).int().argmax(1) + 1
    enough = (0.25 * wanted.double()).sqrt() + 1e-6
    assert wanted.unique().numel() > 3
    found = pixel_flips(model, images, labels, epsilon=enough, candidates=3)
    assert found.success.all()
    assert torch.equal((found.images != images).sum((1, 2, 3)), wanted)
    assert not pixel_flips(model, images, labels, epsilon=enough - 1e-3, candidates=3).success.any()


def test_it_finds_nearly_all_that_trying_every_set_of_pixels_finds(generator: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = behind_a_threshold(nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3)))
    images = torch.rand(60, 1, 1, 8, generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(1)
        every = [list(each) for each in chain(*(combinations(range(8), k) for k in range(9)))]
        epsilon = 0.4
        beyond = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
        possible = torch.zeros(60, dtype=torch.bool)
        for chosen in every:
            tried = images.clone()
            tried[..., chosen] = torch.where(images[..., chosen] > 0.5, torch.tensor(0.5), beyond)
            possible |= ((tried - images).flatten(1).norm(dim=1) <= epsilon) & (model(tried).argmax(1) != labels)
    found = pixel_flips(model, images, labels, epsilon=epsilon)
    assert not (found.success & ~possible).any()
    assert possible.sum() > 20
    assert found.success.sum() >= 0.9 * possible.sum()
    assert ((found.images - images).flatten(1).norm(dim=1) <= epsilon + 1e-6).all()
    assert pgd(model, images, labels, epsilon=epsilon, norm="l2").success.sum() < found.success.sum()


def test_a_target_is_reached(affine: Affine, generator: torch.Generator) -> None:
    model = behind_a_threshold(by_sign(affine, torch.randn(30, generator=generator)))
    images = torch.rand(20, 1, 1, 30, generator=generator)
    wanted = 1 - model(images).argmax(1).detach()
    found = pixel_flips(model, images, wanted, epsilon=3.0, targeted=True)
    assert found.success.all()
    assert torch.equal(model(found.images).argmax(1), wanted)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_with_all_pixels_on_one_side_is_refused(affine: Affine, threshold: float) -> None:
    with pytest.raises(ValueError, match=re.escape("threshold must be in [0, 1)")):
        pixel_flips(
            by_sign(affine, torch.ones(4)), torch.zeros(1, 4), torch.zeros(1).long(), epsilon=1.0, threshold=threshold
        )


@pytest.mark.parametrize("argument", ["steps", "candidates"])
def test_less_than_one_step_or_candidate_is_refused(affine: Affine, argument: str) -> None:
    none: dict[str, Any] = {argument: 0}
    with pytest.raises(ValueError, match=re.escape(f"{argument} must be at least 1, got 0")):
        pixel_flips(by_sign(affine, torch.ones(4)), torch.zeros(1, 4), torch.zeros(1).long(), epsilon=1.0, **none)
