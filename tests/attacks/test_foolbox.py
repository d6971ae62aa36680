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
def test_bim_is_the_same_image_unless_an_earlier_iterate_is_worse(
    foolbox: ModuleType, digits: Digits, norm: Any
) -> None:
    """Foolbox returns the last iterate, we the worst one: equal where the last is the worst, never less harmful."""
    network, _, labels = digits
    epsilon = 0.1 if norm == "linf" else 0.8
    kind = "LinfBasicIterativeAttack" if norm == "linf" else "L2BasicIterativeAttack"
    theirs = attacked(foolbox, getattr(foolbox.attacks, kind)(rel_stepsize=0.1, steps=12), digits, epsilons=epsilon)
    ours = bim(*digits, epsilon=epsilon, step_size=epsilon / 10, steps=12, norm=norm).images
    with torch.no_grad():
        their_logits, our_logits = network(theirs), network(ours)
    harm = F.cross_entropy(our_logits, labels, reduction="none") - F.cross_entropy(
        their_logits, labels, reduction="none"
    )
    same = harm.abs() < 1e-4
    assert same.float().mean() > 0.8
    torch.testing.assert_close(ours[same], theirs[same], atol=1e-5, rtol=0)
    flipped, they_flipped = our_logits.argmax(1) != labels, their_logits.argmax(1) != labels
    assert (flipped >= they_flipped).all()
    assert (harm[flipped == they_flipped] > -1e-4).all()


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
