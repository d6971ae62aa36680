"""Linear classifiers: the nearest adversarial image is known, also where the box [0, 1] is active."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defendpp.attacks import AttackResult, bim, carlini_wagner, ddn, fgsm, pgd

Affine = Callable[[Tensor, Tensor], nn.Linear]
INPUTS = 12

MINIMAL = {
    "carlini_wagner": partial(
        carlini_wagner, search_steps=9, iterations=150, learning_rate=0.02, initial_constant=0.01
    ),
    "ddn": partial(ddn, steps=200, levels=None),
}
minimal_norm = pytest.mark.parametrize("attack", MINIMAL.values(), ids=MINIMAL.keys())


def distances(result: AttackResult, images: Tensor) -> Tensor:
    norms: Tensor = (result.images - images).norm(dim=1)
    return norms


def gentle(affine: Affine, generator: torch.Generator) -> tuple[nn.Linear, Tensor, Tensor]:
    """Five classes, and images so near the middle of the box that no boundary lies beyond its faces.

    The weights are large, so that cross-entropy follows the two classes that meet at the nearest boundary.
    """
    weight = 30 * torch.randn(5, INPUTS, generator=generator, dtype=torch.float64)
    images = 0.5 + 0.05 * torch.randn(40, INPUTS, generator=generator, dtype=torch.float64)
    model = affine(weight, -weight.sum(1) / 2)
    nearest = (model(images).topk(2).values @ torch.tensor([1.0, -1.0], dtype=torch.float64)).detach()
    images = images[nearest > 2]
    return model, images, model(images).argmax(1)


def binary(affine: Affine, generator: torch.Generator) -> tuple[nn.Linear, Tensor, Tensor]:
    """Two classes, and 20 images of class 0 spread over the whole box, with pixels at exactly 0 and 1.

    Each image is its own problem: the boundary w·x = level is set far enough that the box gets in the way.
    """
    direction = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
    images = torch.rand(20, INPUTS, generator=generator, dtype=torch.float64)
    images[:, :3] = images[:, :3].round()
    start = images @ direction
    images = images[start.argsort()[:10]]
    level = (images @ direction).max() * 0.5 + direction.clamp_min(0).sum() * 0.5
    weight = torch.stack([torch.zeros_like(direction), direction])
    return affine(weight, torch.stack([torch.zeros_like(level), -level])), images, torch.zeros(10, dtype=torch.long)


def smallest(crosses: Callable[[Tensor], Tensor], rows: int) -> Tensor:
    """By bisection, the smallest multiplier per row for which the monotone predicate `crosses` holds."""
    low, high = torch.zeros(rows, 1, dtype=torch.float64), torch.full((rows, 1), 1e3, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        crossed = crosses(middle)[:, None]
        low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
    return high


@minimal_norm
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_minimal_l2_is_the_distance_to_the_nearest_hyperplane(
    attack: Callable[..., AttackResult], targeted: bool, affine: Affine, generator: torch.Generator
) -> None:
    model, images, truth = gentle(affine, generator)
    labels = (truth + 1) % 5 if targeted else truth
    weight, logits = model.weight.detach(), model(images).detach()
    normals = weight - weight[labels][:, None]
    gaps = logits.gather(1, labels[:, None]) - logits
    to_each = gaps / normals.norm(dim=2)  # signed distance to where each class meets the labelled one; nan at itself
    if targeted:
        # the wanted class must beat all others; the farthest boundary is the answer where its foot beats the rest too
        best, last = (-to_each).nan_to_num(-torch.inf).max(1)
        rows = torch.arange(len(images))
        foot = images - best[:, None] * F.normalize(normals[rows, last], dim=1)
        simple = model(foot)[rows, labels] >= model(foot).amax(1) - 1e-9
        assert simple.sum() >= 5
        images, labels, best = images[simple], labels[simple], best[simple]
    else:
        best = to_each.nan_to_num(torch.inf).amin(1)
    result = attack(model, images, labels, targeted=targeted)
    assert result.success.all()
    ratio = distances(result, images) / best
    assert ratio.min() >= 1 - 1e-6
    assert ratio.median() <= 1.02
    assert ratio.max() <= 1.25  # the strongest rival by logit is not always the nearest


@minimal_norm
def test_minimal_l2_where_the_box_is_active(
    attack: Callable[..., AttackResult], affine: Affine, generator: torch.Generator
) -> None:
    model, images, labels = binary(affine, generator)
    direction, level = model.weight.detach()[1], -model.bias.detach()[1]

    def nearest(multiplier: Tensor) -> Tensor:
        # the conditions of optimality: follow the normal, and let what leaves the box stay on its face
        return (images + multiplier * direction).clamp(0, 1)

    optimum = nearest(smallest(lambda t: nearest(t) @ direction >= level, len(images)))
    best = (optimum - images).norm(dim=1)
    ignoring_the_box = (level - images @ direction) / direction.norm()
    assert (best > 1.02 * ignoring_the_box).any(), "the box must matter for this test to say anything"
    result = attack(model, images, labels)
    assert result.success.all()
    ratio = distances(result, images) / best
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 1.1


@pytest.mark.parametrize("attack", [fgsm, bim, partial(pgd, restarts=2)], ids=["fgsm", "bim", "pgd"])
def test_linf_flips_exactly_beyond_the_margin_over_the_l1_norm(
    attack: Callable[..., AttackResult], affine: Affine, generator: torch.Generator
) -> None:
    direction = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
    images = 0.5 + 0.02 * torch.randn(20, INPUTS, generator=generator, dtype=torch.float64)
    model = affine(torch.stack([-direction, direction]), torch.tensor([0.0, -direction.sum()]))
    logits = model(images).detach()
    labels = logits.argmax(1)
    exact = (logits[:, 1] - logits[:, 0]).abs() / (2 * direction.abs().sum())
    assert attack(model, images, labels, epsilon=1.001 * exact).success.all()
    assert not attack(model, images, labels, epsilon=0.999 * exact).success.any()


@pytest.mark.parametrize("attack", [fgsm, bim, pgd], ids=["fgsm", "bim", "pgd"])
def test_linf_where_the_box_is_active(
    attack: Callable[..., AttackResult], affine: Affine, generator: torch.Generator
) -> None:
    model, images, labels = binary(affine, generator)
    direction, level = model.weight.detach()[1], -model.bias.detach()[1]
    exact = smallest(lambda t: (images + t * direction.sign()).clamp(0, 1) @ direction >= level, len(images)).flatten()
    assert (exact > 1.02 * (level - images @ direction) / direction.abs().sum()).any()
    assert attack(model, images, labels, epsilon=1.001 * exact).success.all()
    assert not attack(model, images, labels, epsilon=0.999 * exact).success.any()


def test_l2_pgd_flips_exactly_beyond_the_distance(affine: Affine, generator: torch.Generator) -> None:
    direction = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
    images = 0.5 + 0.02 * torch.randn(20, INPUTS, generator=generator, dtype=torch.float64)
    model = affine(torch.stack([-direction, direction]), torch.tensor([0.0, -direction.sum()]))
    logits = model(images).detach()
    labels = logits.argmax(1)
    exact = (logits[:, 1] - logits[:, 0]).abs() / (2 * direction.norm())
    run = partial(pgd, model, images, labels, norm="l2", steps=60)
    assert run(epsilon=1.001 * exact).success.all()
    assert not run(epsilon=0.999 * exact).success.any()


@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_whose_squares_underflow_are_still_followed(sign: int, affine: Affine) -> None:
    """A gap of 70 logits leaves float32 gradients near 1e-30."""
    direction = sign * torch.tensor([3.0, -4.0, 0.0])
    model = affine(
        torch.stack([torch.zeros(3), 200 * direction]), torch.tensor([0.0, -100 * direction.sum().item() - 70])
    )
    images, labels = torch.full((1, 3), 0.5), torch.tensor([0])
    exact = 70 / (200 * 5)
    found = ddn(model, images, labels, levels=None)
    assert found.success.all()
    assert distances(found, images).item() == pytest.approx(exact, rel=0.03)
    assert pgd(model, images, labels, norm="l2", random_start=False, epsilon=1.01 * exact).success.all()
    once = pgd(model, images, labels, norm="l2", random_start=False, epsilon=1.0, step_size=0.001, steps=1)
    assert distances(once, images).item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("attack", [carlini_wagner, ddn], ids=["carlini_wagner", "ddn"])
def test_zero_distance_for_an_image_already_adversarial(
    attack: Callable[..., AttackResult], affine: Affine, generator: torch.Generator
) -> None:
    model, images, _ = gentle(affine, generator)
    images[:, 0] = images[:, 0].round()  # at exactly 0 and 1 no search in tanh space would come back to the image
    truth = model(images).argmax(1)
    wrong = attack(model, images, (truth + 1) % 5)
    assert wrong.success.all()
    assert torch.equal(wrong.images, images)
    there = attack(model, images, truth, targeted=True)
    assert there.success.all()
    assert torch.equal(there.images, images)


def test_a_larger_confidence_is_honoured(affine: Affine, generator: torch.Generator) -> None:
    model, images, labels = gentle(affine, generator)
    result = carlini_wagner(model, images, labels, confidence=0.3, search_steps=9, iterations=100, learning_rate=0.02)
    logits = model(result.images).detach()
    own = logits.gather(1, labels[:, None])[:, 0]
    assert result.success.all()
    assert (logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own >= 0.3).all()
