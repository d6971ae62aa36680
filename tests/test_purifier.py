"""ComDefend is the published network, and its threshold hides gradients until they are put back."""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defendpp.attacks import AttackResult, bim, prepare
from defendpp.data import load
from defendpp.networks import load_weights, save
from defendpp.objective import Objective
from defendpp.purifier import GRADIENTS, Averaged, Binarise, ComDefend, Purified, purification

Batch = tuple[Tensor, Tensor]


def small_classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def fit(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: Batch, steps: int, batch_size: int) -> None:
    images, labels = data
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,))
        optimizer.zero_grad()
        loss(images[rows], labels[rows]).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def digits() -> tuple[Batch, Batch]:
    """Training and test digits of mnist-5k at 14x14."""
    data = load("mnist-5k")
    (images, labels), (held_out, answers) = (split.batch(range(len(split))) for split in (data.train, data.test))
    chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:300]
    return (F.avg_pool2d(images, 2), labels), (F.avg_pool2d(held_out[chosen], 2), answers[chosen])


@pytest.fixture(scope="module")
def trained(digits: tuple[Batch, Batch]) -> Purified:
    """A classifier fitted to clean digits, and a narrow purifier fitted as published but for its first brightness."""
    data, _ = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = small_classifier()
        fit(classifier, lambda x, y: F.cross_entropy(classifier(x), y), data, 100, 64)
        model = Purified(ComDefend(1, width=1 / 8, mean_pixel=data[0].mean().item()), classifier.eval())
        fit(model.purifier, lambda x, y: torch.stack([*purification(model, x, y).values()]).sum(), data, 150, 10)
    model.zero_grad()
    return model.eval()


def com_defend(model: Purified) -> ComDefend:
    assert isinstance(model.purifier, ComDefend)
    return model.purifier


def untrained(channels: int = 1, gradient: str = "exact", test_noise: float = 0.0, seed: int = 0) -> Purified:
    torch.manual_seed(seed)
    purifier = ComDefend(channels, width=1 / 16, test_noise=test_noise)
    classifier = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ELU(), nn.Flatten(), nn.LazyLinear(10))
    model = Purified(purifier, classifier, gradient)
    model(torch.rand(4, channels, 10, 10))  # statistics, and the size of the linear layer
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 1, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As users run: without the shape checks of the test suite."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def input_gradient(model: nn.Module, images: Tensor) -> Tensor:
    variable = images.clone().requires_grad_()
    value = (model(variable) * torch.arange(10.0)).sum() + 0 * variable.sum()  # 0: of a frozen model it may be constant
    (gradient,) = torch.autograd.grad(value, variable)
    return gradient


@pytest.mark.parametrize(
    ("channels", "compressing", "rebuilding"),
    [
        (3, [3, 16, 32, 64, 128, 256, 128, 64, 32, 12], [12, 32, 64, 128, 256, 128, 64, 32, 16, 3]),
        (1, [1, 32, 64, 128, 256, 128, 64, 64, 32, 4], [4, 32, 64, 128, 256, 128, 64, 64, 32, 1]),
    ],
)
def test_layers_are_the_published_ones(channels: int, compressing: list[int], rebuilding: list[int]) -> None:
    purifier = ComDefend(channels)
    for half, sizes in ((purifier.com_cnn, compressing), (purifier.rec_cnn, rebuilding)):
        shapes = [tuple(parameter.shape) for parameter in half.parameters()]
        assert shapes == [shape for i, o in pairwise(sizes) for shape in ((o, i, 3, 3), (o,))]
        assert [type(layer) for layer in half] == [nn.Conv2d, nn.ELU] * 8 + [nn.Conv2d]
    narrow = ComDefend(channels, width=1 / 64)
    assert narrow.com_cnn[0].out_channels == 1
    assert narrow.com_cnn[-1].out_channels == compressing[-1]
    assert narrow.rec_cnn[-1].out_channels == channels


def test_forward_by_hand(images: Tensor) -> None:
    """The input is centred; a bit is whether the sigmoid of the code is above one half; the output is a sigmoid."""
    purifier = com_defend(untrained())
    bits = (purifier.com_cnn(images - 0.5).sigmoid() > 0.5).float()
    assert 0.1 < bits.mean() < 0.9, "both bits must occur"
    for training in (False, True):
        assert purifier.train(training)(images).equal(purifier.rec_cnn(bits).sigmoid())


def test_soft_by_hand(images: Tensor) -> None:
    purifier = com_defend(untrained())
    torch.manual_seed(5)
    rebuilt, code = purifier.soft(images)
    torch.manual_seed(5)
    noise = 20 * torch.randn(4, 4, 10, 10)
    expected = (purifier.com_cnn(images - 0.5) - noise).sigmoid()
    torch.testing.assert_close(code, expected)
    torch.testing.assert_close(rebuilt, purifier.rec_cnn(expected).sigmoid())


def test_first_output_is_the_mean_pixel() -> None:
    purifier = ComDefend(3, width=1 / 16, mean_pixel=0.13)
    for parameter in purifier.rec_cnn[:-1].parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(purifier(torch.rand(2, 3, 8, 8)), torch.full((2, 3, 8, 8), 0.13))


@pytest.mark.parametrize("channels", [1, 3])
def test_all_gradients_have_the_same_forward_pass(channels: int) -> None:
    model = untrained(channels)
    images = torch.rand(4, channels, 10, 10)
    purified, logits = model.purifier(images), model(images)
    assert purified.shape == images.shape
    assert purified.min() >= 0
    assert purified.max() <= 1
    for gradient in GRADIENTS:
        view = model.attacked_through(gradient)
        assert model.purifier(images, gradient).equal(purified)
        assert view(images).equal(logits)
        torch.testing.assert_close(view(images.contiguous(memory_format=torch.channels_last)), logits)


def test_exact_gradient_is_none(images: Tensor) -> None:
    assert not input_gradient(untrained(), images).any()


def test_straight_through_by_the_chain_rule(images: Tensor) -> None:
    """RecCNN's gradient at the bits, passed on to ComCNN as if it were the gradient at the code."""
    model = untrained(gradient="straight-through")
    variable = images.clone().requires_grad_()
    code = com_defend(model).com_cnn(variable - 0.5)
    bits = (code > 0).float().detach().requires_grad_()
    logits = model.classifier(com_defend(model).rec_cnn(bits).sigmoid())
    (at_bits,) = torch.autograd.grad((logits * torch.arange(10.0)).sum(), bits)
    (expected,) = torch.autograd.grad(code, variable, at_bits)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(input_gradient(model, images), expected)


def test_identity_is_the_classifier_s_gradient_at_the_purified_image(images: Tensor) -> None:
    model = untrained(gradient="identity")
    expected = input_gradient(model.classifier, model.purifier(images).detach())
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(input_gradient(model, images), expected)


def test_views_share_weights_and_are_one_network(images: Tensor, tmp_path: Path) -> None:
    model = untrained()
    view = model.attacked_through("straight-through")
    assert view.purifier is model.purifier
    assert view.classifier is model.classifier
    assert (model.gradient, view.gradient) == ("exact", "straight-through")
    assert not view.training
    assert repr(view) == repr(model), "of which fingerprints are made"
    copied = copy.deepcopy(view)
    torch.testing.assert_close(input_gradient(copied, images), input_gradient(view, images))
    save(view, tmp_path / "model.safetensors")
    other = untrained(seed=1).attacked_through("identity")
    assert not other(images).equal(model(images))
    load_weights(other, tmp_path / "model.safetensors")
    assert other(images).equal(model(images))


def test_what_changes_the_network_is_printed() -> None:
    prints = {repr(ComDefend(1, width=1 / 16, **settings)) for settings in ({}, {"noise": 5.0}, {"test_noise": 1.0})}
    assert len(prints) == 3
    assert "width=0.0625, noise=20, test_noise=0" in repr(ComDefend(1, width=1 / 16))


@pytest.mark.parametrize("shapes_checked", [True, False])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_prepared_copy_keeps_the_gradient(
    gradient: str, shapes_checked: bool, images: Tensor, request: pytest.FixtureRequest
) -> None:
    """Also where torch.fx traces it, as it does for users; the shape checks of the test suite refuse its proxies."""
    if not shapes_checked:
        request.getfixturevalue("unchecked_shapes")
    model = untrained(gradient=gradient)
    prepared = prepare(model, images)
    assert prepared.how.startswith("not folded" if shapes_checked else "batch normalisation folded")
    torch.testing.assert_close(prepared(images), model(images))
    torch.testing.assert_close(input_gradient(prepared, images), input_gradient(model, images))


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_traced_copy_still_draws_its_noise(images: Tensor) -> None:
    model = untrained(gradient="straight-through", test_noise=1.0)
    traced = torch.fx.symbolic_trace(model)
    assert not traced(images).equal(traced(images))
    torch.manual_seed(2)
    expected = input_gradient(model, images)
    torch.manual_seed(2)
    torch.testing.assert_close(input_gradient(traced, images), expected)


def test_noise_outside_training_is_drawn_from_torch_s_generator(images: Tensor) -> None:
    assert untrained()(images).equal(untrained()(images))
    model = untrained(test_noise=3.0)
    torch.manual_seed(7)
    first, second = model.purifier(images), model.purifier(images)
    assert not first.equal(second)
    torch.manual_seed(7)
    bits = (com_defend(model).com_cnn(images - 0.5) - 3 * torch.randn(4, 4, 10, 10) > 0).float()
    assert first.equal(com_defend(model).rec_cnn(bits).sigmoid())


def test_noise_is_the_same_in_every_memory_layout() -> None:
    purifier = com_defend(untrained(3))
    images = torch.rand(4, 3, 10, 10)
    torch.manual_seed(7)
    _, expected = purifier.soft(images)
    torch.manual_seed(7)
    _, code = purifier.to(memory_format=torch.channels_last).soft(images.contiguous(memory_format=torch.channels_last))
    assert not code.is_contiguous()
    torch.testing.assert_close(code, expected)


def test_averaged_is_the_logarithm_of_the_expected_prediction(images: Tensor) -> None:
    model = untrained(gradient="straight-through", test_noise=3.0)
    averaged = Averaged(model, 5)
    torch.manual_seed(3)
    logits = averaged(images)
    torch.manual_seed(3)
    expected = torch.stack([model(images).softmax(1) for _ in range(5)]).mean(0)
    torch.testing.assert_close(logits.exp(), expected)
    torch.testing.assert_close(Averaged(untrained(), 3)(images), untrained()(images).log_softmax(1))
    assert input_gradient(averaged, images).any()
    assert isinstance(bim(averaged, images, torch.arange(4), epsilon=0.1, steps=2), AttackResult)


def test_purification_by_hand(images: Tensor) -> None:
    model = untrained()
    labels = torch.zeros(4, dtype=torch.long)
    torch.manual_seed(4)
    rebuilt, code = com_defend(model).soft(images)
    for weight in (1e-4, 0.3):
        torch.manual_seed(4)
        terms = purification(model, images, labels, code_weight=weight)
        assert terms["reconstruction"].item() == pytest.approx(((rebuilt - images) ** 2).mean().item())
        assert terms["code"].item() == pytest.approx(weight * (code**2).mean().item())
    assert list(purification(model, images, labels, code_weight=0)) == ["reconstruction"]


def test_purification_leaves_the_classifier_alone(images: Tensor) -> None:
    model = untrained().train()
    before = copy.deepcopy(model.classifier.state_dict())
    objective: Objective = purification
    torch.stack([*objective(model, images, torch.arange(4)).values()]).sum().backward()
    assert all(parameter.grad is None for parameter in model.classifier.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in model.classifier.state_dict().items())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.purifier.parameters())


def test_training_rebuilds_digits_from_a_binary_code(trained: Purified, digits: tuple[Batch, Batch]) -> None:
    (images, _), (held_out, labels) = digits
    with torch.no_grad():
        hard = trained.purifier(held_out)
        soft, code = com_defend(trained).soft(held_out)
        error = F.mse_loss(hard, held_out).item()
        guess = F.mse_loss(images.mean(0).expand_as(held_out), held_out).item()
        assert error < 0.4 * guess
        assert F.mse_loss(soft, hard).item() < 0.3 * error
        assert ((code < 0.01) | (code > 0.99)).float().mean() > 0.9
        accuracy = (trained(held_out).argmax(1) == labels).float().mean()
        assert accuracy > 0.75, "the classifier has never seen a purified image"


def test_the_threshold_masks_gradients_and_nothing_else(trained: Purified, digits: tuple[Batch, Batch]) -> None:
    images, labels = (tensor[:80] for tensor in digits[1])
    broken = {
        gradient: bim(trained.attacked_through(gradient), images, labels, epsilon=0.2, steps=15).success
        for gradient in GRADIENTS
    }
    wrong = trained(images).argmax(1) != labels
    assert broken["exact"].equal(wrong), "without a gradient no image moves"
    assert broken["identity"].float().mean() > wrong.float().mean() + 0.2
    assert broken["straight-through"].float().mean() > 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, r"channels must be 1 or 3, .* not 2"),
        ({"width": 0.0}, r"width must be a positive factor .*, not 0\.0"),
        ({"width": float("nan")}, "not nan"),
        ({"noise": -1.0}, r"^noise must be a standard deviation of at least 0 and finite, not -1\.0"),
        ({"test_noise": float("inf")}, "^test_noise must be a standard deviation of at least 0 and finite, not inf"),
        ({"mean_pixel": 0.0}, r"mean_pixel must be inside \(0, 1\), .* not 0\.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComDefend(**{"channels": 1, "width": 1 / 16, **settings})  # type: ignore[arg-type]


def test_bad_arguments_are_refused(images: Tensor) -> None:
    model = untrained()
    message = "gradient must be one of exact, straight-through, identity, not 'bpda'"
    for refused in (
        lambda: model.attacked_through("bpda"),
        lambda: Purified(model.purifier, model.classifier, "bpda"),
        lambda: model.purifier(images, "bpda"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    with pytest.raises(ValueError, match="draws must be at least 1, not 0"):
        Averaged(model, 0)
    with pytest.raises(ValueError, match=r"code_weight must be at least 0, not -0\.1"):
        purification(model, images, torch.arange(4), code_weight=-0.1)
    with pytest.raises(ValueError, match="trains the ComDefend of a Purified classifier, not a Sequential"):
        purification(model.classifier, images, torch.arange(4))


def test_binarise_lets_gradients_through_only_where_asked() -> None:
    images = torch.tensor([0.0, 0.2, 0.49, 0.51, 0.8, 1.0]).reshape(1, 1, 2, 3)
    slopes = {}
    for gradient in GRADIENTS:
        variable = images.clone().requires_grad_()
        bits = Binarise()(variable, gradient)
        torch.testing.assert_close(bits.detach(), (images > 0.5).float())
        if bits.requires_grad:
            (slopes[gradient],) = torch.autograd.grad(bits.sum(), variable)
    assert set(slopes) == {"straight-through", "identity"}
    assert slopes["identity"].eq(1).all()
    soft = (10 * (images - 0.5)).sigmoid()
    torch.testing.assert_close(slopes["straight-through"], 10 * soft * (1 - soft))


def test_binarised_digits_fall_only_to_attacks_through_the_threshold(digits: tuple[Batch, Batch]) -> None:
    data, (images, labels) = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Purified(Binarise(), small_classifier())
        fit(model, lambda x, y: F.cross_entropy(model(x), y), data, 150, 64)
    model.eval()
    hidden = bim(model, images, labels, epsilon=0.3, steps=20)
    seen = bim(model.attacked_through("straight-through"), images, labels, epsilon=0.3, steps=20)
    assert hidden.images.equal(images)  # no gradient, no attack
    assert seen.success.float().mean() > hidden.success.float().mean() + 0.2
