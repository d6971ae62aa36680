"""The cascade: as strong as its stages, honest about what it broke, and no pass spent on what has fallen."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from defendpp import threats
from defendpp.attacks import auto_pgd, cascade, prepare

Digits = tuple[nn.Module, Tensor, Tensor]
Affine = Callable[[Tensor, Tensor], nn.Linear]
Norm = Literal["linf", "l2"]


def margins(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(images)
    rows = labels[:, None]
    best: Tensor = logits.scatter(1, rows, -torch.inf).amax(1) - logits.gather(1, rows)[:, 0]
    return best


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.07), ("l2", 0.5)])
def test_every_claimed_success_is_one_in_the_ball(digits: Digits, norm: Norm, epsilon: float) -> None:
    network, images, labels = digits
    result = cascade(prepare(network, images[:8]), images, labels, epsilon=epsilon, norm=norm, steps=20)
    assert 0.1 < result.success.float().mean() < 0.9
    assert torch.equal(result.success, network(result.images).argmax(1) != labels)
    offset = (result.images - images).flatten(1)
    assert torch.linalg.vector_norm(offset, torch.inf if norm == "linf" else 2, dim=1).max() <= epsilon + 1e-6
    assert result.images.min() >= 0
    assert result.images.max() <= 1


@pytest.mark.parametrize("first", [{"loss": "margin", "steps": 10}, {"steps": 20}])
def test_never_weaker_than_its_stages_image_by_image(digits: Digits, first: dict[str, Any]) -> None:
    _, images, labels = digits
    if first["steps"] == 10:
        stage = auto_pgd(*digits, epsilon=0.07, start=images, **first).success
    else:  # the same random start as the cascade draws for those that stand
        standing = ~auto_pgd(*digits, epsilon=0.07, start=images, loss="margin", steps=10).success
        held = auto_pgd(digits[0], images[standing], labels[standing], epsilon=0.07, **first)
        stage = ~standing
        stage[standing] = held.success
    whole = cascade(*digits, epsilon=0.07, steps=20).success
    assert (whole >= stage).all()
    assert whole.sum() > 5


def test_each_further_target_only_adds(digits: Digits) -> None:
    def broken(targets: int) -> Tensor:
        return cascade(*digits, epsilon=0.07, first_steps=1, steps=6, targets=targets, squares=0).success

    assert (broken(1) >= broken(0)).all()
    assert (broken(9) >= broken(1)).all()
    assert broken(9).sum() > broken(0).sum()
    assert torch.equal(broken(50), broken(9)), "there are only nine other classes"


def test_squares_find_what_gradients_do_not_show(digits: Digits) -> None:
    network, images, labels = digits

    class Rounded(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = (100 * network(batch)).round() / 100
            return logits

    def broken(squares: int, **arguments: Any) -> Tensor:
        return cascade(Rounded(), images, labels, epsilon=0.1, steps=3, targets=1, squares=squares, **arguments).success

    assert (broken(300) >= broken(0)).all()
    assert broken(300).sum() > broken(0).sum() + 10


def test_what_is_broken_is_attacked_no_more(digits: Digits) -> None:
    network, images, labels = digits
    wrong = network(images).argmax(1) != labels
    result = cascade(*digits, epsilon=0.07, first_steps=5, steps=20, restarts=2, targets=3, squares=30)
    assert (result.queries[wrong] == 2).all()  # the clean prediction and the last check
    assert torch.equal(result.images[wrong], images[wrong])
    # clean, last check; a start, the steps, the stage's own check and the margin of what it found, stage by stage
    whole = 2 + (5 + 3) + (2 * (20 + 1) + 2) + 3 * (20 + 3) + (30 + 3)
    assert (result.queries[~result.success] == whole).all()
    early = result.success & ~wrong
    assert (result.queries[early] < whole).all()
    assert result.queries[early].float().mean() < 0.5 * whole


def test_queries_are_the_passes_the_model_saw(digits: Digits) -> None:
    network, seen = digits[0], 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        nonlocal seen
        seen += len(inputs[0])

    with network.register_forward_hook(count):
        result = cascade(*digits, epsilon=0.07, steps=10)
    assert result.queries.sum() == seen


def test_what_resists_comes_back_at_the_highest_margin_met(digits: Digits) -> None:
    network, images, labels = digits

    def made(targets: int, squares: int) -> Tensor:
        return cascade(*digits, epsilon=0.03, steps=10, targets=targets, squares=squares).images

    sets = [images, made(0, 0), made(4, 0), made(4, 30)]
    stands = margins(network, sets[3], labels) < 0
    assert stands.sum() > 20
    heights = [margins(network, each, labels)[stands] for each in sets]
    for earlier, later in pairwise(heights):
        assert (later >= earlier - 1e-6).all()
        assert (later > earlier + 1e-6).any()


def test_hidden_gradients_of_cross_entropy_do_not_hide_from_it(digits: Digits) -> None:
    """Logits times 1000: the cross-entropy of a confident network is flat in float32, its margin is not."""
    network, images, labels = digits

    class Confident(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = 1000 * network(batch)
            return logits

    flat = auto_pgd(Confident(), images, labels, epsilon=0.1, steps=10, start=images).success
    found = cascade(Confident(), images, labels, epsilon=0.1, steps=10).success
    expected = cascade(network, images, labels, epsilon=0.1, steps=10).success
    assert flat.sum() < 0.5 * expected.sum()
    assert found.sum() >= expected.sum() - 1


def test_a_model_without_gradients_keeps_what_it_got_right() -> None:
    class Step(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            bright = (images.flatten(1).mean(1) > 0.5).float()
            return torch.stack([1 - bright, bright, -bright, bright - 3, bright - 4], 1)

    images = torch.tensor([0.1, 0.9, 0.2]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    result = cascade(Step(), images, torch.tensor([0, 1, 1]), epsilon=0.1, steps=5)
    assert result.success.tolist() == [False, False, True]
    assert result.images.isfinite().all()


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes: int, affine: Affine, generator: torch.Generator) -> None:
    """Linf distances to the boundaries of a linear model are known: the margin over the L1 norm of the difference."""
    weight = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
    images = 0.5 + 0.01 * torch.randn(20, 12, generator=generator, dtype=torch.float64)
    model = affine(weight, -weight.sum(1) / 2)
    logits = model(images).detach()
    labels = logits.argmax(1)
    gaps = logits.gather(1, labels[:, None]) - logits
    distance = (gaps / (weight - weight[labels][:, None]).abs().sum(2)).nan_to_num(torch.inf).amin(1)
    assert cascade(model, images, labels, epsilon=1.001 * distance, steps=20).success.all()
    assert not cascade(model, images, labels, epsilon=0.999 * distance, steps=20).success.any()


def test_the_threat_says_what_it_does(digits: Digits) -> None:
    attack = threats.cascade(0.07, steps=10, targets=2, norm="l2")
    assert (attack.name, attack.norm, attack.epsilon, attack.is_random) == ("cascade", "l2", 0.07, True)
    assert attack.settings == {"first_steps": 10, "steps": 10, "restarts": 1, "targets": 2, "squares": 300}
    expected = cascade(*digits, epsilon=0.07, steps=10, targets=2, norm="l2")
    assert torch.equal(attack.run(*digits).images, expected.images)
    other = threats.auto_pgd(0.07, steps=10, loss="dlr")
    assert (other.name, other.norm, other.is_random) == ("auto_pgd", "linf", True)
    assert other.settings == {"steps": 10, "restarts": 1, "loss": "dlr", "stop_early": False}
    assert torch.equal(other.run(*digits).images, auto_pgd(*digits, epsilon=0.07, steps=10, loss="dlr").images)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"epsilon": -1.0}, "epsilon must be finite and at least 0, got -1.0"),
        ({"first_steps": 0}, "first_steps must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"targets": -1}, "targets must be at least 0, got -1"),
        ({"squares": -1}, "squares must be at least 0, got -1"),
        ({"norm": "l1"}, 'norm must be "linf" or "l2", got \'l1\''),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments: dict[str, Any], sentence: str, digits: Digits) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        cascade(*digits, **{"epsilon": 0.1, **arguments})
