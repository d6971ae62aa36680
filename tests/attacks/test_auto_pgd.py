"""Auto-PGD: its losses against the formulas, its schedule against the paper, its strength where the answer is known."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defendpp.attacks import auto_pgd, bim, pgd
from defendpp.attacks.auto_pgd import _reviews, dlr

Digits = tuple[nn.Module, Tensor, Tensor]
Affine = Callable[[Tensor, Tensor], nn.Linear]
Norm = Literal["linf", "l2"]
INPUTS = 12


def test_dlr_is_equation_6() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, -1.0], [3.0, 5.0, 4.5, -9.0]])
    # label on top: minus its lead over the second, by the highest minus the third; label elsewhere: the lead over it
    expected = torch.tensor([-(5 - 2) / (5 - 1), (5 - 3) / (5 - 3)])
    torch.testing.assert_close(dlr(logits, torch.tensor([1, 0])), expected)
    torch.testing.assert_close(dlr(7 * logits + 100, torch.tensor([1, 0])), expected)


def test_targeted_dlr_is_equation_7() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, -1.0, -4.0], [3.0, 5.0, 4.5, -9.0, 0.0]])
    expected = torch.tensor([-(5 - (-4)) / (5 - (1 - 1) / 2), (4.5 - 5) / (5 - (3 + 0) / 2)])
    torch.testing.assert_close(dlr(logits, torch.tensor([1, 1]), torch.tensor([4, 2])), expected)
    torch.testing.assert_close(dlr(7 * logits + 100, torch.tensor([1, 1]), torch.tensor([4, 2])), expected)


def test_dlr_of_equal_logits_is_zero_with_a_finite_gradient() -> None:
    model, images = nn.Linear(3, 5), torch.rand(2, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    result = auto_pgd(model, images, torch.tensor([0, 1]), epsilon=0.1, loss="dlr", steps=3)
    assert result.images.isfinite().all()


def test_reviews_come_at_the_papers_times() -> None:
    places = [0, 22, 41, 57, 70, 80, 87, 93, 99]  # p_j of section 3.2, in hundredths
    assert list(_reviews(100)) == places
    assert list(_reviews(1000)) == [10 * place for place in places]
    for steps in (1, 2, 7, 10, 33, 100):
        reviews = _reviews(steps)
        at = list(reviews)
        assert max(at) <= steps
        assert list(reviews.values())[1:] == [b - a for a, b in pairwise(at)]


class Recorder(nn.Module):
    """Two classes over one pixel, with the loss a given function of it; notes where it is asked."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.loss, self.seen = loss, list[float]()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images[0].item())
        height = self.loss(images[:, 0])
        return torch.stack([-height, height], 1)


def test_the_steps_are_algorithm_1(affine: Affine) -> None:
    """On a tent the iterates can be followed by hand: the procedure is written out in plain Python beside it."""
    peak, clean, epsilon, steps = 0.53, 0.5, 0.1, 40

    def height(x: float) -> float:
        return -10 - abs(x - peak)

    model = Recorder(lambda x: -10 - (x - peak).abs())
    images = torch.full((1, 1), clean, dtype=torch.float64)
    auto_pgd(model, images, torch.tensor([0]), epsilon=epsilon, loss="margin", steps=steps, start=images)

    def project(x: float) -> float:
        return min(max(x, clean - epsilon), clean + epsilon)

    checkpoints = [0, 9, 17, 23, 28, 32, 35, 38, 40]  # 0.22, 0.41, 0.57, ... of 40, rounded up
    xs, best, size = [clean], clean, 2 * epsilon
    halved, best_before, rises, current, previous = False, height(clean), 0, clean, clean
    for k in range(1, steps + 1):
        z = project(current + size * (1 if current < peak else -1))
        moved = z if k == 1 else project(current + 0.75 * (z - current) + 0.25 * (current - previous))
        rises += height(moved) > height(current)
        previous, current = current, moved
        xs.append(current)
        best = max(best, current, key=height)
        if k in checkpoints[1:]:
            window = k - checkpoints[checkpoints.index(k) - 1]
            if rises < 0.75 * window or (not halved and height(best) == best_before):
                halved, size, current = True, size / 2, best
            else:
                halved = False
            best_before, rises = height(best), 0
    assert model.seen[:-1] == pytest.approx(xs, abs=1e-9)
    assert len({round(x, 6) for x in xs}) > 10, "the procedure should not stand still"


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_flips_exactly_beyond_the_distance_to_the_boundary(
    norm: Norm, loss: Any, affine: Affine, generator: torch.Generator
) -> None:
    direction = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
    images = 0.5 + 0.02 * torch.randn(20, INPUTS, generator=generator, dtype=torch.float64)
    model = affine(torch.stack([-direction, direction]), torch.tensor([0.0, -direction.sum()]))
    logits = model(images).detach()
    labels = logits.argmax(1)
    dual = direction.abs().sum() if norm == "linf" else direction.norm()
    exact = (logits[:, 1] - logits[:, 0]).abs() / (2 * dual)

    def broken(share: float, **arguments: Any) -> Tensor:
        return auto_pgd(model, images, labels, epsilon=share * exact, norm=norm, loss=loss, **arguments).success

    assert broken(1.001).all()
    assert not broken(0.999).any()
    assert broken(1.001, stop_early=True).all()
    assert broken(1.001, targets=1 - labels).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_the_box_is_active(norm: Norm, affine: Affine, generator: torch.Generator) -> None:
    """From a random image with pixels at 0 and 1, the highest w·x that the ball and the box allow."""
    direction = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
    images = torch.rand(20, INPUTS, generator=generator, dtype=torch.float64)
    images[:, :3] = images[:, :3].round()
    radius = 0.15 if norm == "linf" else 0.8

    def follow(multiplier: Tensor) -> Tensor:
        # optimality: in L2 along w, and what leaves the box stays on its face
        step = direction.sign() * radius if norm == "linf" else multiplier * direction
        return (images + step).clamp(0, 1)

    low, high = torch.zeros(20, 1, dtype=torch.float64), torch.full((20, 1), 1e3, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        inside = ((follow(middle) - images).norm(dim=1) <= radius)[:, None]
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    reach = follow(low) @ direction  # by steps of 2 epsilon and smaller, L2 comes within a percent of it
    step = direction.sign() if norm == "linf" else direction / direction.norm()
    assert (reach < (images + radius * step) @ direction - 0.01).any(), "the box must matter"

    for share, breaks in ((0.99, True), (1.001, False)):
        level = images @ direction + share * (reach - images @ direction)
        for row in range(6):
            model = affine(torch.stack([0 * direction, direction]), torch.stack([0 * level[row], -level[row]]))
            result = auto_pgd(model, images[[row]], torch.tensor([0]), epsilon=radius, norm=norm, loss="margin")
            assert result.success.item() is breaks


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.07), ("l2", 0.5)])
def test_reaches_a_higher_loss_than_pgd_in_as_many_steps(digits: Digits, norm: Norm, epsilon: float) -> None:
    network, _, labels = digits
    arguments: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "steps": 40}

    def height(found: Tensor) -> float:
        return F.cross_entropy(network(found), labels).item()

    auto, plain = auto_pgd(*digits, **arguments), pgd(*digits, **arguments)
    assert height(auto.images) > height(plain.images) - 1e-3
    assert auto.success.sum() >= plain.success.sum()


def test_targets_lead_to_their_class_and_any_other_class_counts(digits: Digits) -> None:
    network, images, labels = digits
    targets = (labels + 1) % 10
    losses: tuple[Any, ...] = ("cross_entropy", "margin", "dlr")
    for loss in losses:
        result = auto_pgd(*digits, epsilon=0.4, loss=loss, steps=20, targets=targets)
        logits = network(result.images)
        assert torch.equal(result.success, logits.argmax(1) != labels)
        assert (logits.gather(1, targets[:, None]) > logits.gather(1, labels[:, None])).float().mean() > 0.9
        if loss == "cross_entropy":  # the others let a third class win
            assert (logits.argmax(1) == targets).float().mean() > 0.8
    wrong = network(images).argmax(1) != labels
    assert auto_pgd(*digits, epsilon=0.0, steps=1, targets=targets).success.equal(wrong)


def test_begins_at_the_start_given_once_it_is_in_the_ball(digits: Digits) -> None:
    network, images, labels = digits
    far = bim(*digits, epsilon=0.3, steps=20)
    assert far.success.all()
    near = (images + (far.images - images).clamp(-0.1, 0.1)).clamp(0, 1)
    flipped = network(near).argmax(1) != labels
    assert flipped.sum() >= 5
    result = auto_pgd(*digits, epsilon=0.1, start=far.images, stop_early=True, steps=1)
    torch.testing.assert_close(result.images[flipped], near[flipped])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stopping_early_breaks_the_same_images_with_fewer_queries(digits: Digits, norm: Norm) -> None:
    epsilon = 0.13 if norm == "linf" else 0.75
    arguments: dict[str, Any] = {"epsilon": epsilon, "steps": 40, "norm": norm, "start": digits[1]}
    full, early = auto_pgd(*digits, **arguments), auto_pgd(*digits, **arguments, stop_early=True)
    assert 0.5 < full.success.float().mean() < 1
    assert torch.equal(early.success, full.success)
    assert (early.queries[~early.success] == full.queries[~early.success]).all()
    assert early.queries.sum() < 0.8 * full.queries.sum()
    torch.testing.assert_close(early.images[~full.success], full.images[~full.success], atol=1e-4, rtol=0)


def test_more_restarts_never_break_fewer(digits: Digits) -> None:
    def broken(restarts: int, **arguments: Any) -> Tensor:
        return auto_pgd(*digits, epsilon=0.05, steps=4, restarts=restarts, **arguments).success

    assert (broken(4) >= broken(1)).all()
    assert torch.equal(broken(4), broken(4, stop_early=True))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"epsilon": -0.1}, "epsilon must be finite and at least 0, got -0.1"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ({"norm": "l1"}, 'norm must be "linf" or "l2", got \'l1\''),
    ({"loss": "mse"}, 'loss must be "cross_entropy", "margin", "dlr" or a function of (logits, labels), got \'mse\''),
    ({"loss": "dlr"}, 'loss "dlr" needs at least 3 classes without targets, and the model has 2'),
    (
        {"loss": "dlr", "targets": torch.tensor([1, 0])},
        'loss "dlr" needs at least 4 classes with targets, and the model has 2',
    ),
    (
        {"start": torch.zeros(2, 1, 3, 4)},
        "start must have the shape of the images, (2, 1, 3, 3), got (2, 1, 3, 4)",
    ),
    (
        {"targets": torch.tensor([1, 0]), "targeted": True},
        "targets need a named loss and targeted=False; with targeted=True the labels are the targets",
    ),
    ({"targets": torch.tensor([1])}, "targets must be one class index per image, got shape (1,) for 2 images"),
    ({"targets": torch.tensor([1, 2])}, "labels must be below the model's 2 classes, got label 2"),
]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[case[1] for case in BAD])
def test_bad_arguments_are_refused_in_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        auto_pgd(model, torch.rand(2, 1, 3, 3), torch.tensor([0, 1]), **{"epsilon": 0.1, **arguments})
