"""Noise and penalties against closed forms on linear models, and against autograd."""

import pytest
import torch
from scipy.fft import dctn
from scipy.stats import entropy
from torch import Tensor, nn

from defendpp.stability import add_noise, consistency, curvature_penalty, gradient_penalty, movement

SHAPE = (1, 6, 6)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, *SHAPE, generator=generator), torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("coarse", [0.0, 0.3, 1.0])
def test_noise_has_the_asked_deviation_whatever_its_frequencies(coarse: float) -> None:
    torch.manual_seed(0)
    gray = torch.full((50, 1, 32, 32), 0.5)
    noise = add_noise(gray, 0.3, coarse=coarse) - gray
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    power = dctn(noise.numpy(), axes=(-2, -1), norm="ortho") ** 2
    share = power[..., :8, :8].sum() / power.sum()
    assert share == pytest.approx(coarse + (1 - coarse) / 16, abs=0.02)


def test_white_noise_is_what_it_was_before_there_was_coarse_noise(batch: tuple[Tensor, Tensor]) -> None:
    images, _ = batch
    torch.manual_seed(3)
    noisy = add_noise(images, 0.5)
    torch.manual_seed(3)
    assert torch.equal(noisy, images + 0.5 * torch.randn(images.shape))


@pytest.mark.parametrize(
    ("arguments", "problem"), [((-0.1, 0.0), "at least 0, not -0.1"), ((0.1, 2.0), "in .0, 1., not 2")]
)
def test_bad_noise_is_refused(batch: tuple[Tensor, Tensor], arguments: tuple[float, float], problem: str) -> None:
    sigma, coarse = arguments
    with pytest.raises(ValueError, match=problem):
        add_noise(batch[0], sigma, coarse=coarse)


def test_consistency_by_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (each.softmax(1).numpy() for each in (first, second))
    mean = (p + q) / 2
    apart, blurred = (0.5 * (entropy(mean, p, axis=1) + entropy(mean, q, axis=1))).mean(), entropy(mean, axis=1).mean()
    assert consistency([first, second], 1).item() == pytest.approx(apart + 0.5 * blurred)
    assert consistency([first, second], 20).item() == pytest.approx(20 * apart + 0.5 * blurred)


def test_agreeing_copies_leave_only_their_entropy() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0]])
    assert consistency([logits, logits], 20).item() == pytest.approx(0, abs=1e-6)
    undecided = torch.zeros(1, 4)
    assert consistency([undecided, undecided], 20, entropy=1).item() == pytest.approx(torch.tensor(4.0).log().item())


def test_movement_is_relative() -> None:
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 2.0]])
    expected = (4 / 2) / (0.5 * (25 / 2 + 13 / 2))
    assert movement([first, second]).item() == pytest.approx(expected)
    assert movement([10 * first, 10 * second]).item() == pytest.approx(expected)
    assert movement([first, first]).item() == 0


def test_the_gradient_penalty_is_the_squared_norm_of_the_gradient(
    smooth: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch[0].double().requires_grad_(), batch[1]
    loss = nn.functional.cross_entropy(smooth(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    expected = gradient.flatten(1).square().sum(1).mean().item()
    assert gradient_penalty(smooth, images.detach(), labels, step=1e-5).item() == pytest.approx(expected, rel=1e-3)


def test_the_curvature_penalty_is_the_change_of_the_gradient(smooth: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch[0].double(), batch[1]

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        loss = nn.functional.cross_entropy(smooth(at), labels, reduction="sum")
        return torch.autograd.grad(loss, at)[0]

    here = gradient(images)
    along = here.sign() / here[0].numel() ** 0.5
    expected = (gradient(images + 0.4 * along) - here).flatten(1).square().sum(1).mean().item()
    assert curvature_penalty(smooth, images, labels, step=0.4).item() == pytest.approx(expected)


def test_a_linear_loss_has_no_curvature() -> None:
    """Two classes far apart: the cross-entropy is linear in the margin, so only the gradient is penalised."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-50.0, 50.0]))  # type: ignore[operator]
    images, labels = torch.rand(3, *SHAPE, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    assert curvature_penalty(model, images, labels, step=1.0).item() == pytest.approx(0, abs=1e-12)
    assert gradient_penalty(model, images, labels).item() > 0.01


@pytest.mark.parametrize("penalty", [gradient_penalty, curvature_penalty])
def test_a_step_against_a_penalty_lowers_it(penalty, smooth: nn.Module, batch: tuple[Tensor, Tensor]) -> None:  # type: ignore[no-untyped-def]
    images, labels = batch[0].double(), batch[1]
    optimizer = torch.optim.SGD(smooth.parameters(), lr=0.05)
    before = penalty(smooth, images, labels, step=0.1)
    before.backward()
    optimizer.step()
    assert penalty(smooth, images, labels, step=0.1) < before
