"""Oracle: scipy.fft in float64, and the laws of an orthonormal transform."""

import numpy as np
import pytest
import scipy.fft
import torch

from defendpp.frequency import (
    count_scales,
    dct2,
    idct2,
    laplacian_pyramid,
    linear,
    low_pass,
    rebuild,
    resample,
    scale_sizes,
)

SIZES = [(28, 28), (32, 32), (224, 224), (7, 9), (1, 5)]


def images(height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(2, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_dct_equals_scipy_and_inverts(size: tuple[int, int]) -> None:
    x = images(*size)
    expected = scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    np.testing.assert_allclose(dct2(x).numpy(), expected, atol=1e-10)
    torch.testing.assert_close(idct2(dct2(x)), x)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (224, 224), (7, 9)])
def test_low_pass_is_the_inverse_dct_of_the_top_left_block_with_unit_gain(size: tuple[int, int]) -> None:
    x = images(*size)
    coefficients = scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    for m, level in enumerate(low_pass(x, 3)):
        height, width = scale_sizes(size, 3)[m]
        block = scipy.fft.idctn(coefficients[..., :height, :width], axes=(-2, -1), norm="ortho")
        gain = np.sqrt(height * width / (size[0] * size[1]))
        if all(side % 2**m == 0 for side in size):
            assert gain == 1 / 2**m
        np.testing.assert_allclose(level.numpy(), gain * block, atol=1e-10)


def test_float32_agrees_with_float64() -> None:
    for single, double in zip(low_pass(images(28, 28).float(), 3), low_pass(images(28, 28), 3), strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, atol=1e-6, rtol=0)


@pytest.mark.parametrize("targets", [low_pass, linear])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_image_stays_that_constant(targets, value: float) -> None:  # type: ignore[no-untyped-def]
    for level in targets(torch.full((1, 1, 28, 28), value, dtype=torch.float64), 3):
        torch.testing.assert_close(level, torch.full_like(level, value))


def test_linear_targets_are_averages_of_neighbours_at_half_size() -> None:
    x = images(28, 28)
    torch.testing.assert_close(linear(x, 2)[1], torch.nn.functional.avg_pool2d(x, 2))


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (224, 224), (7, 9)])
def test_pyramid_rebuilds_the_image(size: tuple[int, int]) -> None:
    x = images(*size)
    torch.testing.assert_close(rebuild(laplacian_pyramid(x, 3)), x)


def test_bands_hold_only_frequencies_that_the_smaller_scale_lacks() -> None:
    band = dct2(laplacian_pyramid(images(28, 28), 3)[0])
    assert band[..., :14, :14].abs().max() < 1e-10
    assert band[..., 14:, 14:].abs().min() > 0


def test_pyramid_of_a_constant_has_no_detail() -> None:
    *bands, smallest = laplacian_pyramid(torch.full((1, 1, 28, 28), 0.7, dtype=torch.float64), 3)
    assert all(band.abs().max() < 1e-12 for band in bands)
    torch.testing.assert_close(smallest, torch.full_like(smallest, 0.7))


def test_low_pass_is_idempotent_and_enlarging_loses_nothing() -> None:
    x = images(28, 28)
    small = resample(x, (14, 14))
    torch.testing.assert_close(resample(resample(small, (28, 28)), (14, 14)), small)


def test_gradient() -> None:
    x = images(7, 9)[:1, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda t: tuple(low_pass(t, 2)), (x,))


@pytest.mark.parametrize(
    ("size", "bottleneck", "expected"),
    [
        ((28, 28), None, 3),  # 28, 14, 7
        ((28, 28), (2, 2), 3),
        ((32, 32), (2, 2), 3),  # 32, 16, 8
        ((224, 224), None, 6),  # 224, 112, 56, 28, 14, 7
        ((224, 224), (14, 14), 4),  # four blocks that halve: 224, 112, 56, 28
        ((224, 224), (7, 7), 5),  # torchvision's stem: 14 is the first image above the bottleneck
        ((32, 32), (8, 8), 2),
        ((12, 12), None, 1),
        ((28, 14), None, 2),
    ],
)
def test_number_of_scales(size: tuple[int, int], bottleneck: tuple[int, int] | None, expected: int) -> None:
    assert count_scales(size, bottleneck=bottleneck) == expected


def test_scales_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        scale_sizes((28, 28), 0)


def test_matrices_made_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        resample(torch.rand(1, 1, 26, 26), (13, 13))
    x = torch.rand(1, 1, 26, 26, requires_grad=True)
    resample(x, (13, 13)).sum().backward()
    assert x.grad is not None
