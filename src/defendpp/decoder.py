"""Decoders that rebuild an image at M scales from the maps of a classifier's encoder: pyramid and hourglasses.

A decoder takes the maps of all blocks by name (`encoder.tap`) and returns [Ĩ^0, ..., Ĩ^{M-1}], largest first. Every
convolution, those that put out images included, is followed by batch normalisation: with a linear output the squared
error diverges at the paper's learning rate of 0.1 within a few steps, because its curvature grows with the number of
channels. A decoder exists during training only, so that none of this reaches the classifier.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from defendpp.encoder import Block, Map, PrivateBlocks
from defendpp.frequency import count_scales, scale_sizes

Image = Float[Tensor, "batch channel _ _"]


class PyramidDecoder(nn.Module):
    """The Laplacian-pyramid decoder of Defend++ (section 3.3, figure 4).

    D_{M-1} is a stack of decoding blocks from the bottleneck up to scale M - 1, reduced to image channels only there.
    Every larger scale is Ĩ^m = U(Ĩ^{m+1}) + H(E_m), equation (2). H taps the deepest encoder map that has the size of
    scale m; where the encoder has none (scale 0 of a network whose first block halves) that scale has U alone, and
    `str(decoder)` says so.
    """

    def __init__(self, blocks: Sequence[Block], image_shape: tuple[int, int, int], scales: int | None = None):
        super().__init__()
        self.sizes = _sizes(blocks, image_shape, scales)
        self.bottleneck = blocks[-1]
        channels = image_shape[0]
        by_size = {block.size: block for block in blocks}
        self.taps = [by_size.get(size) for size in self.sizes[:-1]]
        deepest = _stack(blocks, _chain(self.bottleneck.size, self.sizes[-1], image_shape[1:]))
        self.deepest = nn.Sequential(*deepest)
        self.head = _image_convolution(deepest[-1].out_channels, channels)
        first = blocks[0]
        self.upsample = nn.ModuleList(
            _Upsample(channels, (tapped or first).channels, size)
            for tapped, size in zip(self.taps, self.sizes[:-1], strict=True)
        )
        self.detail = nn.ModuleList(
            _Detail(tapped.channels, channels) if tapped else nn.Identity() for tapped in self.taps
        )

    def forward(self, maps: dict[str, Map]) -> list[Image]:
        """The rebuilt images, largest first."""
        image: Tensor = self.head(self.deepest(maps[self.bottleneck.name]))
        images = [image]
        for tapped, upsample, detail in reversed(list(zip(self.taps, self.upsample, self.detail, strict=True))):
            image = upsample(image)
            if tapped is not None:
                image = image + detail(maps[tapped.name])
            images.insert(0, image)
        return images

    def __str__(self) -> str:
        lines = [
            f"scale {m}, {height}x{width}: U + H on {tapped}"
            if tapped
            else f"scale {m}, {height}x{width}: U alone, the encoder has no map of this size"
            for m, ((height, width), tapped) in enumerate(zip(self.sizes, self.taps, strict=False))
        ]
        height, width = self.sizes[-1]
        return "\n".join(
            [
                "pyramid decoder",
                *lines,
                f"scale {len(lines)}, {height}x{width}: {len(self.deepest)} decoding blocks from {self.bottleneck}",
            ]
        )


class HourglassDecoder(nn.Module):
    """The hourglass (section 3.3, figure 3): decoding blocks that mirror the encoder, up to the full size.

    `skip` connects each decoding block with the encoder map of its size as in U-Net: "concatenate" (Hourglass-SC) or
    "add" (Hourglass-SA); "none" is the plain hourglass. A 1x1 convolution puts out the image at each of the M scales.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        image_shape: tuple[int, int, int],
        scales: int | None = None,
        skip: str = "none",
    ):
        super().__init__()
        if skip not in ("none", "concatenate", "add"):
            raise ValueError(f'skip must be "none", "concatenate" or "add", not {skip!r}')
        self.sizes = _sizes(blocks, image_shape, scales)
        self.bottleneck = blocks[-1]
        self.skip = skip
        steps = _chain(self.bottleneck.size, self.sizes[0], image_shape[1:])
        by_size = {block.size: block for block in blocks} if skip != "none" else {}
        self.taps = [by_size.get(size) for size in steps]
        stack = _stack(blocks, steps, concatenated=self.taps if skip == "concatenate" else None)
        self.stack = nn.ModuleList(stack)
        self.plan = [(step.size, step.out_channels, tapped) for step, tapped in zip(stack, self.taps, strict=True)]
        heads: dict[str, nn.Module] = {}
        for size, decoding, tapped in zip(steps, stack, self.taps, strict=True):
            if size in self.sizes:
                extra = tapped.channels if tapped and skip == "concatenate" else 0
                heads[str(self.sizes.index(size))] = _image_convolution(decoding.out_channels + extra, image_shape[0])
        self.heads = nn.ModuleDict(heads)

    def forward(self, maps: dict[str, Map]) -> list[Image]:
        """The rebuilt images, largest first."""
        features = maps[self.bottleneck.name]
        images: list[Tensor] = []
        for decoding, tapped in zip(self.stack, self.taps, strict=True):
            features = decoding(features)
            if tapped is not None:
                skipped = maps[tapped.name]
                features = torch.cat([features, skipped], 1) if self.skip == "concatenate" else features + skipped
            size = (features.shape[-2], features.shape[-1])
            if size in self.sizes:
                images.insert(0, self.heads[str(self.sizes.index(size))](features))
        return images

    def __str__(self) -> str:
        kind = {"none": "hourglass", "concatenate": "hourglass-SC", "add": "hourglass-SA"}[self.skip]
        lines = [
            f"{height}x{width}: {channels} channels" + (f", {self.skip} {tapped}" if tapped else "")
            for (height, width), channels, tapped in self.plan
        ]
        return "\n".join([f"{kind} decoder from {self.bottleneck}, images at {len(self.sizes)} scales", *lines])


class AutoEncoder(nn.Module):
    """What is trained beside the classifier and thrown away: private copies of its last blocks, and a decoder.

    The first `shared` blocks are the classifier's own; they belong to it and are not part of this module.
    """

    def __init__(self, private: PrivateBlocks, last_shared: Block, decoder: nn.Module):
        super().__init__()
        self.private = private
        self.last_shared = last_shared
        self.decoder = decoder

    def forward(self, images: Float[Tensor, "batch channel height width"], tapped: dict[str, Map]) -> list[Image]:
        """[Ĩ^0, ..., Ĩ^{M-1}] from the maps `tapped` while the classifier saw `images`."""
        rebuilt: list[Image] = self.decoder({**tapped, **self.private(images, tapped[self.last_shared.name])})
        return rebuilt


class _Decoding(nn.Module):
    """A residual block that doubles the size: 3x3 convolution, 3x3 transposed convolution of stride 2, and a skip.

    The first convolution already reduces the channels. The exact mirror image of an encoding block, with the reduction
    in the second, costs twice as much, and the deepest blocks are the dearest part of the decoder.
    """

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.out_channels = out_channels
        self.first = _normalised_convolution(in_channels, out_channels)
        self.second = nn.ConvTranspose2d(
            out_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.normalise = nn.BatchNorm2d(out_channels)
        self.skip = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, features: Map) -> Map:
        up = self.normalise(_fit(self.second(self.first(features)), self.size))
        return torch.relu(up + interpolate(self.skip(features), self.size, mode="nearest"))


class _Upsample(nn.Module):
    """U of equation (2): an image of twice the size from an image, as its enlargement plus a learned residual."""

    def __init__(self, channels: int, hidden: int, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.first = _normalised_convolution(channels, hidden)
        self.second = nn.ConvTranspose2d(hidden, channels, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.normalise = nn.BatchNorm2d(channels)

    def forward(self, image: Map) -> Map:
        residual: Tensor = self.normalise(_fit(self.second(self.first(image)), self.size))
        return residual + interpolate(image, self.size, mode="bilinear", align_corners=False)


class _Detail(nn.Module):
    """H of equation (2): a residual block of two 3x3 convolutions from an encoder map to the image's detail."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            _normalised_convolution(in_channels, in_channels),
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.skip = _image_convolution(in_channels, channels)

    def forward(self, features: Map) -> Map:
        detail: Tensor = self.body(features) + self.skip(features)
        return detail


def _normalised_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def _fit(features: Map, size: tuple[int, int]) -> Map:
    """Bring what a stride of 2 put out to `size`: one row or column less where the size is odd, else interpolated."""
    surplus = [have - want for have, want in zip(features.shape[-2:], size, strict=True)]
    if all(0 <= pixels <= 1 for pixels in surplus):
        return features[..., : size[0], : size[1]]
    fitted: Tensor = interpolate(features, size, mode="bilinear", align_corners=False)
    return fitted


def _image_convolution(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))


def _sizes(blocks: Sequence[Block], image_shape: tuple[int, int, int], scales: int | None) -> list[tuple[int, int]]:
    """The sizes of the M scales; refuses more than fit between the image and the bottleneck."""
    size = image_shape[1:]
    most = count_scales(size, bottleneck=blocks[-1].size, smallest=1)
    chosen = scales if scales is not None else count_scales(size, bottleneck=blocks[-1].size)
    if not 1 <= chosen <= most:
        raise ValueError(f"scales must be between 1 and {most} above a bottleneck of {blocks[-1]}, not {chosen}")
    return scale_sizes(size, chosen)


def _chain(bottleneck: tuple[int, int], top: tuple[int, int], image: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes that decoding blocks pass through, from just above `bottleneck` up to `top`."""
    chain = [image]
    while min(chain[-1]) > 1:
        chain.append(scale_sizes(chain[-1], 2)[1])
    between = [size for size in chain if bottleneck[0] < size[0] <= top[0] and bottleneck[1] < size[1]]
    return between[::-1]


def _stack(
    blocks: Sequence[Block],
    sizes: Sequence[tuple[int, int]],
    concatenated: Sequence[Block | None] | None = None,
) -> list[_Decoding]:
    """Decoding blocks from the bottleneck through `sizes`, each with the channels of the encoder map of its size.

    Where the encoder has no map of that size, half of the channels of the block before, at least 8.
    """
    by_size = {block.size: block.channels for block in blocks}
    channels = blocks[-1].channels
    stack: list[_Decoding] = []
    for i, size in enumerate(sizes):
        out_channels = by_size.get(size, max(8, min(channels, blocks[0].channels) // 2))
        stack.append(_Decoding(channels, out_channels, size))
        tapped = concatenated[i] if concatenated else None
        channels = out_channels + (tapped.channels if tapped else 0)
    return stack
