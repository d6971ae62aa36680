"""Random search by squares: where the answer is known, without gradients, and from where another attack ended."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defendpp.attacks import auto_pgd, square
from defendpp.attacks.square import _share, _stripes, _with_square

Digits = tuple[nn.Module, Tensor, Tensor]
Affine = Callable[[Tensor, Tensor], nn.Linear]


@pytest.mark.parametrize("shape", [(2, 9, 13), (11,), (3, 7)], ids=str)
@pytest.mark.parametrize("share", [0.8, 0.2, 0.01])
def test_a_square_of_the_asked_area_is_set_to_the_ends_of_the_ball(
    shape: tuple[int, ...], share: float, generator: torch.Generator
) -> None:
    images = torch.full((1500, *shape), 0.5)
    low, high = images - 0.1, images + 0.2
    changed = _with_square(images, low, high, share, generator)
    moved = changed != images
    torch.testing.assert_close(changed[moved].unique(), torch.tensor([0.4, 0.7]))
    height, width = (1, *shape)[-2:]
    canvas = moved.reshape(1500, -1, height, width)
    assert (canvas.any(1) == canvas.all(1)).all(), "every channel gets the same square"
    rows, columns = canvas[:, 0].any(2).sum(1), canvas[:, 0].any(1).sum(1)
    assert (rows.unique().numel(), columns.unique().numel()) == (1, 1)
    assert (canvas[:, 0].sum((1, 2)) == rows * columns).all()
    assert (rows[0] * columns[0]).item() == pytest.approx(max(1, share * height * width), rel=0.35)
    assert canvas[:, 0].any(0).all(), "every place is reached"


def test_squares_shrink_as_in_the_paper_to_a_single_pixel(generator: torch.Generator) -> None:
    shares = [_share(query / 10_000) for query in (1, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert shares == [0.8, 0.8, *(0.8 / 2**halvings for halvings in range(1, 10))]


def test_stripes_run_the_whole_height(generator: torch.Generator) -> None:
    low = torch.zeros(5, 3, 4, 6)
    stripes = _stripes(low, low + 1, generator)
    assert (stripes == stripes[:, :, :1]).all()
    assert 0.3 < stripes.mean() < 0.7


def test_linf_flips_only_beyond_the_margin_over_the_l1_norm(affine: Affine, generator: torch.Generator) -> None:
    direction = torch.randn(8, generator=generator, dtype=torch.float64)
    images = 0.5 + 0.02 * torch.randn(20, 8, generator=generator, dtype=torch.float64)
    model = affine(torch.stack([-direction, direction]), torch.tensor([0.0, -direction.sum()]))
    logits = model(images).detach()
    labels = logits.argmax(1)
    exact = (logits[:, 1] - logits[:, 0]).abs() / (2 * direction.abs().sum())
    assert square(model, images, labels, epsilon=1.001 * exact, queries=600).success.all()
    assert not square(model, images, labels, epsilon=0.999 * exact, queries=600).success.any()


def test_needs_no_gradient(digits: Digits) -> None:
    network, images, labels = digits

    class Rounded(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = (100 * network(batch)).round() / 100
            return logits

    before = (network(images).argmax(1) != labels).sum()
    assert square(Rounded(), images, labels, epsilon=0.15, queries=300).success.sum() > before + 15
    blind = auto_pgd(Rounded(), images, labels, epsilon=0.15, steps=20, start=images)
    assert blind.success.sum() <= before + 1


def test_goes_on_from_where_another_attack_ended(digits: Digits) -> None:
    network, images, labels = digits
    first = auto_pgd(*digits, epsilon=0.04, steps=10, loss="margin")

    def heights(found: Tensor) -> Tensor:
        with torch.no_grad():
            logits = network(found)
        rows = labels[:, None]
        best: Tensor = logits.scatter(1, rows, -torch.inf).amax(1) - logits.gather(1, rows)[:, 0]
        return best

    second = square(*digits, epsilon=0.04, queries=30, start=first.images)
    assert (second.success >= first.success).all()
    stands = ~second.success
    assert (heights(second.images)[stands] >= heights(first.images)[stands]).all()
    assert (heights(second.images)[stands] > heights(square(*digits, epsilon=0.04, queries=30).images)[stands]).all()
    outside = square(*digits, epsilon=0.02, queries=1, start=first.images)
    assert (outside.images - images).abs().max() <= 0.02 + 1e-6


def test_broken_images_leave_and_more_queries_never_break_fewer(digits: Digits) -> None:
    few, many = (square(*digits, epsilon=0.15, queries=queries) for queries in (20, 200))
    assert many.success.sum() >= few.success.sum()
    assert (many.queries[~many.success] == 202).all()
    assert many.queries[many.success].float().mean() < 130


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"epsilon": -1.0}, "epsilon must be finite and at least 0, got -1.0"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"start": torch.zeros(1, 2)}, "start must have the shape of the images, (60, 1, 8, 8), got (1, 2)"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments: dict[str, Any], sentence: str, digits: Digits) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        square(*digits, **{"epsilon": 0.1, **arguments})
