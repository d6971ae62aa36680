"""Image by image against Foolbox (Rauber et al. 2017), on a trained network."""

import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defendpp.attacks import bim, carlini_wagner, ddn, fgsm, pgd

Digits = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def foolbox() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports scipy.ndimage.filters
        import foolbox

    return foolbox


@pytest.fixture
def digits(digits: Digits) -> Digits:
    """The digits classified correctly: where an image is wrong from the start, Foolbox and we differ on purpose."""
    network, images, labels = digits
    right = network(images).argmax(1) == labels
    return network, images[right], labels[right]


def attacked(foolbox: ModuleType, attack: Any, digits: Digits, **arguments: Any) -> Tensor:
    network, images, labels = digits
    wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, adversarial, _ = attack(wrapped, images, labels, **arguments)
    network.zero_grad(set_to_none=True)  # Foolbox fills the parameters' gradients
    assert isinstance(adversarial, Tensor)
    return adversarial.detach()


@pytest.mark.parametrize("epsilon", [0.03, 0.1, 0.3])
def test_fgsm_is_the_same_image(foolbox: ModuleType, digits: Digits, epsilon: float) -> None:
    theirs = attacked(foolbox, foolbox.attacks.LinfFastGradientAttack(), digits, epsilons=epsilon)
    torch.testing.assert_close(fgsm(*digits, epsilon=epsilon).images, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bim_is_the_worst_iterate_of_the_same_path(foolbox: ModuleType, digits: Digits, norm: Any) -> None:
    """Foolbox returns the last iterate: run for every number of steps it shows the path, and we return its worst."""
    network, _, labels = digits
    epsilon, steps = (0.1 if norm == "linf" else 0.8), 12
    kind = getattr(foolbox.attacks, "LinfBasicIterativeAttack" if norm == "linf" else "L2BasicIterativeAttack")
    path = torch.stack(
        [
            attacked(foolbox, kind(rel_stepsize=0.1, steps=step), digits, epsilons=epsilon)
            for step in range(1, steps + 1)
        ]
    )
    ours = bim(*digits, epsilon=epsilon, step_size=epsilon / 10, steps=steps, norm=norm).images
    with torch.no_grad():
        theirs, own = torch.stack([network(images) for images in path]), network(ours)
    harm = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in theirs])
    flips = theirs.argmax(2) != labels
    worst = harm.where(flips | ~flips.any(0), -torch.inf).max(0).values  # of those that flip, if any does
    on_path = ((path - ours).abs().flatten(2).amax(2) < 1e-5).any(0)
    assert on_path.float().mean() > 0.95  # the sign of a gradient of nearly 0 is a matter of rounding
    assert ((own.argmax(1) != labels) == flips.any(0))[on_path].all()
    torch.testing.assert_close(
        F.cross_entropy(own, labels, reduction="none")[on_path], worst[on_path], atol=1e-4, rtol=0
    )


def test_ddn_finds_the_same_distances(foolbox: ModuleType, digits: Digits) -> None:
    network, images, labels = digits
    theirs = attacked(foolbox, foolbox.attacks.DDNAttack(steps=50), digits, epsilons=None)
    ours = ddn(network, images, labels, steps=50, levels=None)
    assert ours.success.all()
    ratio = (ours.images - images).flatten(1).norm(dim=1) / (theirs - images).flatten(1).norm(dim=1)
    assert ratio.median().item() == pytest.approx(1, abs=0.02)
    assert ((ratio - 1).abs() < 0.02).float().mean() > 0.9


def test_carlini_wagner_finds_the_same_distances(foolbox: ModuleType, digits: Digits) -> None:
    """On images kept off the faces of the box, since Foolbox's tanh space is flat there."""
    network, images, labels = digits
    inner = 0.1 + 0.8 * images
    right = network(inner).argmax(1) == labels
    inner, labels = inner[right], labels[right]
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=4, steps=30, stepsize=0.05, initial_const=0.1, abort_early=False
    )
    theirs = attacked(foolbox, attack, (network, inner, labels), epsilons=None)
    ours = carlini_wagner(
        network, inner, labels, search_steps=4, iterations=30, learning_rate=0.05, initial_constant=0.1
    )
    assert ours.success.all()
    ratio = (ours.images - inner).flatten(1).norm(dim=1) / (theirs - inner).flatten(1).norm(dim=1)
    assert ratio.median().item() == pytest.approx(1, abs=0.02)
    assert ((ratio - 1).abs() < 0.02).float().mean() > 0.9


def test_pgd_breaks_the_same_images(foolbox: ModuleType, digits: Digits) -> None:
    """Random starts differ, so the images do too; what is broken should not."""
    network, _, labels = digits
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.1, steps=20, random_start=False)
    theirs = network(attacked(foolbox, attack, digits, epsilons=0.08)).argmax(1) != labels
    ours = pgd(*digits, epsilon=0.08, steps=20).success
    assert 0.1 < ours.float().mean() < 0.99
    assert (ours == theirs).float().mean() > 0.95
