"""What every attack promises, one test per promise and every attack in each."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defendpp.attacks import (
    AttackResult,
    auto_pgd,
    bim,
    carlini_wagner,
    cascade,
    ddn,
    fgsm,
    minimal_pgd,
    pgd,
    pixel_flips,
    square,
)
from defendpp.attacks.engine import check_inputs

Attack = Callable[..., AttackResult]
Digits = tuple[nn.Module, Tensor, Tensor]

FIXED: dict[str, Attack] = {
    "fgsm": partial(fgsm, epsilon=0.1),
    "bim": partial(bim, epsilon=0.1, steps=6),
    "bim-l2": partial(bim, epsilon=0.8, steps=6, norm="l2"),
    "bim-margin": partial(bim, epsilon=0.1, steps=6, loss="margin"),
    "bim-stop_early": partial(bim, epsilon=0.1, steps=12, stop_early=True),
}
RANDOM: dict[str, Attack] = {
    "pgd": partial(pgd, epsilon=0.1, steps=5, restarts=2),
    "pgd-l2": partial(pgd, epsilon=0.8, steps=5, norm="l2"),
    "pgd-stop_early": partial(pgd, epsilon=0.1, steps=12, restarts=2, stop_early=True),
    "auto_pgd": partial(auto_pgd, epsilon=0.1, steps=5, restarts=2),
    "auto_pgd-l2": partial(auto_pgd, epsilon=0.8, steps=5, norm="l2"),
    "auto_pgd-margin": partial(auto_pgd, epsilon=0.1, steps=5, loss="margin"),
    "square": partial(square, epsilon=0.2, queries=40),
    "auto_pgd-stop_early": partial(auto_pgd, epsilon=0.1, steps=12, restarts=2, stop_early=True),
}
UNTARGETED: dict[str, Attack] = {
    "cascade": partial(cascade, epsilon=0.1, first_steps=2, steps=4, targets=2, squares=6),
    "cascade-l2": partial(cascade, epsilon=0.8, first_steps=2, steps=4, targets=2, squares=6, norm="l2"),
}
ACROSS_A_THRESHOLD: dict[str, Attack] = {
    "pixel_flips": partial(pixel_flips, epsilon=1.2, steps=12, candidates=3),
}
MINIMAL: dict[str, Attack] = {
    "carlini_wagner": partial(carlini_wagner, search_steps=4, iterations=12, learning_rate=0.2),
    "ddn": partial(ddn, steps=15),
    "ddn-real_valued": partial(ddn, steps=15, levels=None),
    "minimal_pgd": partial(minimal_pgd, steps=15),
}


def over(*attacks: dict[str, Attack]) -> pytest.MarkDecorator:
    named = {name: attack for group in attacks for name, attack in group.items()}
    return pytest.mark.parametrize("attack", named.values(), ids=named.keys())


every_attack = over(FIXED, RANDOM, UNTARGETED, ACROSS_A_THRESHOLD, MINIMAL)


class Constant(nn.Module):
    """Always prefers class 0, with a gradient of zero (connected) or with none at all."""

    def __init__(self, connected: bool = True) -> None:
        super().__init__()
        self.connected = connected
        self.logits = nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits.expand(len(images), -1)
        return logits + 0 * images.flatten(1).sum(1, keepdim=True) if self.connected else logits


def small_model(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random two-layer network of five classes on images of any shape."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        inputs = int(torch.tensor(shape).prod())
        model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 5))
    return model.to(dtype)


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        classes: Tensor = model.eval()(images).argmax(1)
    return classes


def assert_same(first: AttackResult, second: AttackResult, atol: float = 0.0) -> None:
    torch.testing.assert_close(first.images, second.images, atol=atol, rtol=0)
    assert torch.equal(first.success, second.success)


@every_attack
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_success_is_the_prediction_on_the_returned_image(attack: Attack, targeted: bool, digits: Digits) -> None:
    network, images, labels = digits
    if targeted and attack in UNTARGETED.values():
        pytest.skip("has no targeted form")
    wanted = (labels + 1) % 10 if targeted else labels
    result = attack(network, images, wanted, **({"targeted": True} if targeted else {}))
    assert result.images.shape == images.shape
    assert result.images.dtype == images.dtype
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    predicted = predictions(network, result.images)
    assert torch.equal(result.success, predicted == wanted if targeted else predicted != wanted)
    before = predictions(network, images)
    assert result.success.sum() > (before == wanted if targeted else before != wanted).sum(), "the attack does nothing"


@over(FIXED, RANDOM, UNTARGETED)
def test_the_ball_of_each_image_is_respected(attack: Attack, digits: Digits) -> None:
    network, images, labels = digits
    right = predictions(network, images) == labels  # from a wrong one, stopping early need not move
    images, labels = images[right], labels[right]
    epsilon = torch.linspace(0, 0.4, len(images))
    images = attack(network, images, labels, epsilon=epsilon).images - images
    norm = 2 if attack.keywords.get("norm") == "l2" else torch.inf  # type: ignore[attr-defined]
    reached = torch.linalg.vector_norm(images.flatten(1), ord=norm, dim=1)
    assert (reached <= epsilon + 1e-6).all()
    assert reached[0] == 0
    assert (reached[1:] > 0).all()


@every_attack
@pytest.mark.parametrize("shape", [(7,), (1, 5, 3), (3, 2, 7), (2, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_any_batch_shape_and_precision(
    attack: Attack, shape: tuple[int, ...], batch: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    model = small_model(*shape, dtype=dtype)
    images = torch.rand(batch, *shape, generator=generator, dtype=dtype)
    labels = torch.zeros(batch, dtype=torch.int32)
    result = attack(model, images, labels)
    assert result.images.shape == images.shape
    assert result.images.dtype == dtype
    assert torch.equal(result.success, predictions(model, result.images) != 0)
    assert result.queries.shape == (batch,)


@every_attack
@pytest.mark.parametrize("connected", [True, False], ids=["zero gradient", "no gradient"])
def test_without_a_gradient_nothing_breaks(attack: Attack, connected: bool, generator: torch.Generator) -> None:
    images = torch.rand(4, 1, 3, 3, generator=generator)
    result = attack(Constant(connected), images, torch.zeros(4, dtype=torch.long))
    assert not result.success.any()
    assert result.images.isfinite().all()
    if attack in (*FIXED.values(), *MINIMAL.values()):
        assert torch.equal(result.images, images)


@over(MINIMAL)
def test_a_failed_minimal_norm_attack_returns_the_original(attack: Attack, digits: Digits) -> None:
    network, images, labels = digits
    hard = torch.where(labels == 3, 5, 3)
    weak = (
        partial(attack, search_steps=1, iterations=2, learning_rate=0.05)
        if attack is MINIMAL["carlini_wagner"]
        else partial(attack, steps=2)
    )
    result = weak(network, images, hard, targeted=True)
    assert (~result.success).sum() >= 5
    assert torch.equal(result.images[~result.success], images[~result.success])


@every_attack
def test_pixels_at_exactly_zero_and_one_can_move(attack: Attack, digits: Digits) -> None:
    network, images, labels = digits
    binary = images.round()
    labels = predictions(network, binary)
    result = attack(network, binary, labels)
    assert result.success.float().mean() > 0.1
    assert ((result.images - binary)[result.success].abs() > 1e-3).flatten(1).any(1).all()


@every_attack
@pytest.mark.parametrize("failing", [False, True], ids=["returns", "raises"])
def test_the_model_is_left_as_found(attack: Attack, failing: bool, generator: torch.Generator) -> None:
    head = nn.Linear(36, 3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), head, nn.Identity())
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    head.weight.grad = torch.ones_like(head.weight)
    if failing:
        model[5].register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    images, labels = torch.rand(4, 1, 5, 5, generator=generator), torch.tensor([0, 1, 2, 0])
    given = images.clone(), labels.clone()
    state = torch.get_rng_state()
    if failing:
        with pytest.raises(RuntimeError, match="broken"):
            attack(model, images, labels)
    else:
        attack(model, images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["0.weight"]
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {"4.weight"}
    assert (head.weight.grad == 1).all()
    assert torch.equal(images, given[0])
    assert torch.equal(labels, given[1])
    assert images.grad is None
    assert not images.requires_grad


@every_attack
def test_the_model_is_attacked_in_evaluation_mode(attack: Attack, digits: Digits) -> None:
    network, images, labels = digits
    expected = attack(network, images, labels)
    network.train()
    try:
        assert_same(attack(network, images, labels), expected)
    finally:
        network.eval()


@every_attack
def test_works_where_gradients_are_switched_off(attack: Attack, digits: Digits) -> None:
    network, images, labels = digits
    expected = attack(network, images, labels)
    with torch.no_grad():
        assert_same(attack(network, images, labels), expected)
    with torch.inference_mode():
        made_here = attack(network, images * 1, labels * 1)
        within = images * 1, labels * 1
    assert_same(made_here, expected)
    assert_same(attack(network, *within), expected)


@over(RANDOM, UNTARGETED)
def test_the_generator_decides(attack: Attack, digits: Digits) -> None:
    def run(seed: int | None) -> AttackResult:
        return attack(*digits, generator=None if seed is None else torch.Generator().manual_seed(seed))

    assert_same(run(3), run(3))
    assert_same(run(None), run(0))
    assert not torch.equal(run(3).images, run(4).images)


@over(FIXED, ACROSS_A_THRESHOLD, MINIMAL)
def test_an_image_does_not_see_its_batch(attack: Attack, digits: Digits, generator: torch.Generator) -> None:
    """In float64, where the order of the batch does not decide the sign of a gradient."""
    model = small_model(1, 4, 4, dtype=torch.float64)
    images = torch.rand(11, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = predictions(model, images)
    whole = attack(model, images, labels)
    assert whole.success.any()
    order = torch.randperm(11, generator=generator)
    shuffled = attack(model, images[order], labels[order])
    torch.testing.assert_close(shuffled.images, whole.images[order], atol=1e-9, rtol=0)
    parts = [attack(model, images[rows], labels[rows]) for rows in (slice(0, 4), slice(4, 5), slice(5, 11))]
    torch.testing.assert_close(torch.cat([part.images for part in parts]), whole.images, atol=1e-9, rtol=0)


@every_attack
@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_a_shift_of_all_logits_changes_nothing(attack: Attack, shift: float, generator: torch.Generator) -> None:
    """Negative logits are a classic: a margin masked by multiplying with zero takes them for the best other class."""
    model = small_model(1, 4, 4, dtype=torch.float64)
    images = torch.rand(8, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = predictions(model, images)
    expected = attack(model, images, labels)
    with torch.no_grad():
        model[3].bias += shift  # type: ignore[index]
    assert_same(attack(model, images, labels), expected, atol=1e-6)


@every_attack
def test_queries_count_forward_passes(attack: Attack, digits: Digits) -> None:
    network, images, labels = digits
    seen = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        nonlocal seen
        seen += len(inputs[0])

    with network.register_forward_hook(count):
        result = attack(network, images, labels)
    assert result.queries.sum() == seen
    assert (result.queries >= 2).all()


@every_attack
def test_a_nan_gradient_does_not_spread(attack: Attack) -> None:
    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:  # at 0 the gradient is inf * 0 = nan, and argmax picks a nan
            total = (images * 0).sqrt().sum(1)
            return torch.stack([torch.ones_like(total), total], 1)

    result = attack(Root(), torch.full((2, 3), 0.5), torch.zeros(2, dtype=torch.long))
    assert result.images.isfinite().all()
    assert not result.success.any()


@every_attack
def test_a_success_that_fails_the_last_check_is_withdrawn(attack: Attack) -> None:
    class Fickle(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            moved = (images != 0.5).any(1) & torch.is_grad_enabled()
            return torch.stack([images.mean(1), images.mean(1) + 2 * moved - 1], 1)

    images = torch.full((3, 4), 0.5)
    result = attack(Fickle(), images, torch.zeros(3, dtype=torch.long))
    assert not result.success.any()
    if attack in MINIMAL.values():
        assert torch.equal(result.images, images)


@every_attack
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_images_and_labels_are_refused_in_one_sentence(attack: Attack) -> None:
    model, images, labels = Constant(), torch.rand(2, 1, 3, 3), torch.tensor([0, 1])
    refused: list[tuple[nn.Module, Tensor, Tensor, str]] = [
        (model, (images * 255).byte(), labels, "images must be float32 or float64 in [0, 1], got torch.uint8"),
        (model, torch.full((2, 3), 2.5), labels, "images must lie in [0, 1], got values from 2.5 to 2.5"),
        (model, images * torch.nan, labels, "images must lie in [0, 1], got values from nan to nan"),
        (
            model,
            images[0, 0, 0],
            torch.zeros(3).long(),
            "images must have a batch axis and at least one more, got shape (3,)",
        ),
        (model, images, labels[:1], "labels must have one entry per image, got shape (1,) for 2 images"),
        (model, images, labels[:, None], "labels must have one entry per image, got shape (2, 1) for 2 images"),
        (model, images, labels.float(), "labels must be integer class indices, got torch.float32"),
        (model, images, labels - 1, "labels must be class indices from 0, got -1"),
        (model, images, labels + 2, "labels must be below the model's 3 classes, got label 3"),
        (nn.Identity(), images, labels, "the model must return logits of shape (2, classes), got (2, 1, 3, 3)"),
    ]
    for classifier, x, y, sentence in refused:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            attack(classifier, x, y)


BAD_ARGUMENTS: list[tuple[Attack, dict[str, Any], str]] = [
    (fgsm, {"epsilon": -0.1}, "epsilon must be finite and at least 0, got -0.1"),
    (bim, {"epsilon": float("nan")}, "epsilon must be finite and at least 0, got nan"),
    (pgd, {"epsilon": float("inf")}, "epsilon must be finite and at least 0, got inf"),
    (pgd, {"epsilon": 8}, "an L∞ epsilon is in pixel units of [0, 1] and at most 1, not 8: 8/255?"),
    (square, {"epsilon": 1.5}, "an L∞ epsilon is in pixel units of [0, 1] and at most 1, not 1.5: 1.5/255?"),
    (pgd, {"epsilon": torch.tensor([0.25, -0.5])}, "epsilon must be finite and at least 0, got -0.5"),
    (pgd, {"epsilon": torch.ones(3)}, "epsilon must be one number or one per image, got shape (3,) for 2 images"),
    (bim, {"epsilon": 0.1, "step_size": -1.0}, "step_size must be finite and at least 0, got -1.0"),
    (bim, {"epsilon": 0.1, "steps": 0}, "steps must be at least 1, got 0"),
    (pgd, {"epsilon": 0.1, "restarts": 0}, "restarts must be at least 1, got 0"),
    (
        pgd,
        {"epsilon": 0.1, "restarts": 3, "random_start": False},
        "restarts must be 1 without a random start, which would repeat the same attack, got 3",
    ),
    (pgd, {"epsilon": 0.1, "norm": "l1"}, 'norm must be "linf" or "l2", got \'l1\''),
    (
        bim,
        {"epsilon": 0.1, "loss": "mse"},
        'loss must be "cross_entropy", "margin" or a function of (logits, labels), got \'mse\'',
    ),
    (
        bim,
        {"epsilon": 0.1, "loss": nn.CrossEntropyLoss()},
        "the loss must return one value per image, got () for 2 images",
    ),
    (ddn, {"steps": 0}, "steps must be at least 1, got 0"),
    (ddn, {"gamma": 1.0}, "gamma must lie between 0 and 1, got 1.0"),
    (ddn, {"initial_norm": 0.0}, "initial_norm must be finite and above 0, got 0.0"),
    (ddn, {"levels": 1}, "levels must be at least 2, got 1"),
    (carlini_wagner, {"search_steps": 0}, "search_steps must be at least 1, got 0"),
    (carlini_wagner, {"iterations": 0}, "iterations must be at least 1, got 0"),
    (carlini_wagner, {"confidence": -1.0}, "confidence must be at least 0, got -1.0"),
    (carlini_wagner, {"learning_rate": 0.0}, "learning_rate must be finite and above 0, got 0.0"),
    (carlini_wagner, {"initial_constant": -1.0}, "initial_constant must be finite and above 0, got -1.0"),
]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(("attack", "arguments", "sentence"), BAD_ARGUMENTS, ids=[case[2] for case in BAD_ARGUMENTS])
def test_bad_arguments_are_refused_in_one_sentence(attack: Attack, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        attack(Constant(), torch.rand(2, 1, 3, 3), torch.tensor([0, 1]), **arguments)


def test_arrays_are_refused_in_a_sentence() -> None:
    """Without the checks of types that only tests have."""
    check = inspect.unwrap(check_inputs)
    with pytest.raises(ValueError, match=r"images must be a torch\.Tensor, got ndarray"):
        check(np.zeros((1, 4)), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must be a torch\.Tensor, got list"):
        check(torch.zeros(1, 4), [0])
    with pytest.raises(ValueError, match="must be on one device, got cpu and meta"):
        check_inputs(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long, device="meta"))
