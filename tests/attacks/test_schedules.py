"""Laws of the fixed-budget attacks and of DDN, beyond the common contract."""

from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor, nn

from defendpp.attacks import bim, ddn, fgsm, pgd

Digits = tuple[nn.Module, Tensor, Tensor]


class ClassZero(nn.Module):
    """Always class 0, whatever the image: for label 1 every point is adversarial, so an attack returns its start."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(images), -1)


def losses(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(network(images), labels, reduction="none")


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_one_step_of_bim_is_fgsm(digits: Digits, epsilon: float) -> None:
    once = bim(*digits, epsilon=epsilon, step_size=epsilon, steps=1)
    assert torch.equal(once.images, fgsm(*digits, epsilon=epsilon).images)


def test_fgsm_moves_every_pixel_by_epsilon_up_the_loss(digits: Digits) -> None:
    network, images, labels = digits
    variable = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(variable), labels), variable)
    expected = (images + 0.1 * gradient.sign()).clamp(0, 1)
    right = network(images).argmax(1) == labels
    torch.testing.assert_close(fgsm(*digits, epsilon=0.1).images[right], expected[right])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball_evenly(norm: Literal["linf", "l2"], generator: torch.Generator) -> None:
    n, epsilon = 6, 0.25
    images, labels = torch.full((2000, n), 0.5), torch.ones(2000, dtype=torch.long)
    starts = pgd(ClassZero(), images, labels, epsilon=epsilon, steps=1, norm=norm, generator=generator).images
    offset = (starts - images) / epsilon
    if norm == "linf":
        uniform = (offset.flatten() + 1) / 2
    else:
        assert offset.mean(0).abs().max() < 0.05
        uniform = offset.norm(dim=1) ** n  # the volume inside a radius grows with its n-th power
    assert kstest(uniform.numpy(), "uniform").pvalue > 0.01


def test_a_larger_budget_never_breaks_fewer_linear_classifications(generator: torch.Generator) -> None:
    model = nn.Linear(10, 2)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 10, generator=generator))
        model.bias.copy_(-model.weight.sum(1) / 2)
    images = torch.rand(50, 10, generator=generator)
    labels = model(images).argmax(1)
    broken = torch.stack([bim(model, images, labels, epsilon=e, steps=10).success for e in (0.0, 0.05, 0.1, 0.3, 1.0)])
    assert (broken[1:] >= broken[:-1]).all()
    assert 0 < broken[1].sum() < broken[3].sum()
    assert not broken[0].any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stopping_early_breaks_the_same_images_with_fewer_queries(digits: Digits, norm: Literal["linf", "l2"]) -> None:
    epsilon = 0.13 if norm == "linf" else 0.75
    full = bim(*digits, epsilon=epsilon, steps=40, norm=norm)
    early = bim(*digits, epsilon=epsilon, steps=40, norm=norm, stop_early=True)
    assert 0.5 < full.success.float().mean() < 1
    assert torch.equal(early.success, full.success)
    assert (early.queries <= full.queries).all()
    assert (early.queries[~early.success] == full.queries[~early.success]).all()
    assert early.queries.sum() < 0.8 * full.queries.sum()
    torch.testing.assert_close(early.images[~full.success], full.images[~full.success], atol=1e-4, rtol=0)


def test_stopping_early_returns_the_first_adversarial_iterate(digits: Digits) -> None:
    network, images, labels = digits
    first = images.clone()
    pending = network(images).argmax(1) == labels
    for steps in range(1, 13):
        iterate = images
        for _ in range(steps):
            moved = fgsm(
                network, iterate, labels, epsilon=0.01, loss=lambda z, y: F.cross_entropy(z, y, reduction="none")
            )
            iterate = torch.where(pending.view(-1, 1, 1, 1), moved.images, iterate)
        first = torch.where(pending.view(-1, 1, 1, 1), iterate, first)
        pending = pending & (network(iterate).argmax(1) == labels)
    early = bim(network, images, labels, epsilon=0.12, step_size=0.01, steps=12, stop_early=True)
    assert early.success.any()
    torch.testing.assert_close(early.images[early.success], first[early.success], atol=1e-6, rtol=0)


def test_more_restarts_never_break_fewer(digits: Digits) -> None:
    def broken(restarts: int, **arguments: Any) -> Tensor:
        return pgd(*digits, epsilon=0.05, steps=4, restarts=restarts, **arguments).success

    assert (broken(4) >= broken(1)).all()
    assert torch.equal(broken(4), broken(4, stop_early=True))


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_an_unbounded_attack_breaks_everything(digits: Digits, stop_early: bool, loss: Any) -> None:
    assert pgd(*digits, epsilon=1.0, loss=loss, stop_early=stop_early).success.all()


def test_what_resists_comes_back_at_its_highest_loss(digits: Digits) -> None:
    """Steps far too large overshoot, so that the last iterate is often not the worst one."""
    network, _, labels = digits
    arguments: dict[str, Any] = {"epsilon": 0.02, "step_size": 0.04}
    runs = [bim(*digits, steps=steps, **arguments) for steps in range(1, 7)]
    scores = torch.stack([losses(network, run.images, labels) for run in runs])
    assert (scores[1:] >= scores[:-1] - 1e-6)[:, ~runs[-1].success].all()
    for earlier, later in pairwise(runs):
        assert (later.success >= earlier.success).all()


def test_an_adversarial_iterate_beats_a_higher_loss(digits: Digits) -> None:
    """A loss that leads out of where the attack succeeds: back to the labelled class."""
    network, images, labels = digits
    wrong = torch.where(network(images).argmax(1) == labels, (labels + 1) % 10, labels)
    assert bim(network, images, wrong, epsilon=0.5, targeted=True).success.any()
    back = bim(network, images, wrong, epsilon=0.5, loss=lambda z, y: z.gather(1, y[:, None])[:, 0])
    assert back.success.all()


def test_a_loss_of_ones_own(digits: Digits) -> None:
    network, images, labels = digits
    own = bim(*digits, epsilon=0.1, steps=5, loss=lambda z, y: F.cross_entropy(z, y, reduction="none"))
    assert torch.equal(own.images, bim(*digits, epsilon=0.1, steps=5).images)
    wanted = (labels + 1) % 10
    margins = bim(network, images, wanted, epsilon=0.1, steps=5, targeted=True, loss="margin")
    assert margins.success.sum() > (network(images).argmax(1) == wanted).sum()


def test_ddn_returns_images_an_8_bit_file_can_hold(digits: Digits) -> None:
    network, images, labels = digits
    stored = (images * 255).round() / 255
    for levels in (256, 16):
        result = ddn(network, stored, labels, steps=40, levels=levels)
        moved = (result.images != stored).flatten(1).any(1)
        assert moved.any()
        steps = result.images[moved] * (levels - 1)
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    written = (ddn(network, stored, labels, steps=40).images * 255).round().byte()
    reread = network(written.float() / 255).argmax(1)
    assert torch.equal(reread != labels, ddn(network, stored, labels, steps=40).success)


def test_ddn_leaves_a_plateau_along_a_random_direction() -> None:
    """No gradient anywhere, but a boundary at distance 0.3 in every direction: only the norm is searched."""

    class Shell(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            outside = ((images - 0.5).norm(dim=1) > 0.3).float()
            return torch.stack([1 - outside, outside], dim=1)

    images = torch.full((5, 20), 0.5)
    result = ddn(Shell(), images, torch.zeros(5, dtype=torch.long), levels=None)
    reached = (result.images - images).norm(dim=1)
    assert result.success.all()
    assert ((reached >= 0.3) & (reached < 0.3 * 1.06)).all()
    again = ddn(
        Shell(), images, torch.zeros(5, dtype=torch.long), levels=None, generator=torch.Generator().manual_seed(9)
    )
    assert not torch.equal(again.images, result.images)
