"""The discrete cosine transform, low-pass images and the Laplacian pyramid: pure functions on tensors.

Convention: the DCT is the orthonormal DCT-II of `scipy.fft.dctn(..., norm="ortho")` over the last two axes. A low-pass
image at scale m keeps the top-left block of the frequency map (Defend++, section 3.3) and is divided by 2^m, so that a
constant image stays that constant; without the division each level would be twice as bright as the one above it. Where
a side is odd, scale m + 1 has ceil(side / 2) pixels, as a convolution of stride 2 has.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil, sqrt

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def dct_matrix(size: int) -> Float[Tensor, "size size"]:
    """The orthonormal DCT-II of length `size` as a matrix, float64: row k is the k-th cosine, the transpose inverts."""
    if size < 1:
        raise ValueError(f"a DCT needs a length of at least 1, not {size}")
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi * (2 * n[None, :] + 1) * n[:, None] / (2 * size)) * sqrt(2 / size)
    matrix[0] /= sqrt(2)
    return matrix


def dct2(images: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch height width"]:
    """The two-dimensional DCT of each image, `scipy.fft.dctn(images, axes=(-2, -1), norm="ortho")`."""
    rows, columns = (dct_matrix(side).to(images) for side in images.shape[-2:])
    return rows @ images @ columns.T


def idct2(coefficients: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch height width"]:
    """The inverse of `dct2`."""
    rows, columns = (dct_matrix(side).to(coefficients) for side in coefficients.shape[-2:])
    return rows.T @ coefficients @ columns


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # the cached matrix must also serve a caller who wants gradients
def resampling_matrix(
    source: int, target: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Float[Tensor, "target source"]:
    """Resampling of a line from `source` to `target` samples through the DCT, computed in float64.

    The lowest min(source, target) frequencies are kept, the others dropped or zero; the factor sqrt(target / source)
    keeps a constant line constant.
    """
    kept = min(source, target)
    matrix = sqrt(target / source) * dct_matrix(target)[:kept].T @ dct_matrix(source)[:kept]
    return matrix.to(dtype=dtype, device=device)


def resample(
    images: Float[Tensor, "*batch height width"], size: tuple[int, int]
) -> Float[Tensor, "*batch new_height new_width"]:
    """Resize images to `size` (height, width) through the DCT: low-pass when smaller, zero-padding when larger.

    Two small matrix products. Enlarging and reducing again gives the image back.
    """
    rows, columns = (
        resampling_matrix(source, target, images.dtype, images.device)
        for source, target in zip(images.shape[-2:], size, strict=True)
    )
    return rows @ images @ columns.T


def scale_sizes(size: tuple[int, int], scales: int) -> list[tuple[int, int]]:
    """(height, width) of scales 0 to `scales` - 1 of an image of `size`: each is half of the one before, rounded up."""
    if scales < 1:
        raise ValueError(f"the number of scales must be at least 1, not {scales}")
    sizes = [size]
    for _ in range(scales - 1):
        height, width = sizes[-1]
        sizes.append((ceil(height / 2), ceil(width / 2)))
    return sizes


def count_scales(size: tuple[int, int], *, bottleneck: tuple[int, int] | None = None, smallest: int = 7) -> int:
    """M, the number of scales of an image of `size`: none has a side below `smallest` (section 3.4: 7x7).

    With `bottleneck`, the size of the encoder's deepest map, scales are also larger than it, because at least one
    decoding block lies between the bottleneck and the first image that is rebuilt. Always at least 1, the image itself.
    """
    scales = 1
    while True:
        side = min(scale_sizes(size, scales + 1)[-1])
        above_bottleneck = bottleneck is None or side > min(bottleneck)
        if side < smallest or not above_bottleneck or side == 1:
            return scales
        scales += 1


def low_pass(
    images: Float[Tensor, "batch channel height width"], scales: int
) -> list[Float[Tensor, "batch channel _ _"]]:
    """The images I^0, ..., I^{M-1} of section 3.3: the inverse DCT of the top-left 1 / 2^m of the frequency map.

    I^0 is `images` itself; I^m has the size of scale m and the brightness of the image.
    """
    sizes = scale_sizes((images.shape[-2], images.shape[-1]), scales)
    return [images, *(resample(images, size) for size in sizes[1:])]


def linear(
    images: Float[Tensor, "batch channel height width"], scales: int
) -> list[Float[Tensor, "batch channel _ _"]]:
    """The same scales by (bi)linear interpolation: the paper's ablation MS-LI."""
    sizes = scale_sizes((images.shape[-2], images.shape[-1]), scales)
    return [images, *(interpolate(images, size, mode="bilinear", align_corners=False) for size in sizes[1:])]


def laplacian_pyramid(
    images: Float[Tensor, "batch channel height width"], scales: int
) -> list[Float[Tensor, "batch channel _ _"]]:
    """[P^0, ..., P^{M-2}, I^{M-1}]: the detail bands P^m = I^m - U(I^{m+1}) of equation (1) and the smallest image.

    U enlarges through the DCT (`resample`), so P^m holds exactly the frequencies of I^m that I^{m+1} lacks.
    """
    levels = low_pass(images, scales)
    bands = [level - resample(smaller, (level.shape[-2], level.shape[-1])) for level, smaller in pairwise(levels)]
    return [*bands, levels[-1]]


def rebuild(pyramid: Sequence[Float[Tensor, "batch channel _ _"]]) -> Float[Tensor, "batch channel height width"]:
    """The image of a `laplacian_pyramid`: I^m = P^m + U(I^{m+1}) from the smallest scale to the largest."""
    image = pyramid[-1]
    for band in reversed(pyramid[:-1]):
        image = band + resample(image, (band.shape[-2], band.shape[-1]))
    return image
