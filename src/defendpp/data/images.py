"""A split of labelled images, and the batches read from it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Generator, Tensor

# Chunks (parquet row groups) that are mixed with each other in one stretch of a shuffled epoch.
MIXED_CHUNKS = 8

Batch = tuple[Float[Tensor, "batch channel height width"], Int[Tensor, " batch"]]
Augment = Callable[[Tensor, Generator], Tensor]


@runtime_checkable
class Pixels(Protocol):
    """Where images come from, row by row: a tensor in memory, or files decoded when they are asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channel, height and width, the same for every image."""

    @property
    def chunks(self) -> Int[Tensor, " chunk"] | None:
        """First row of each run of rows that can only be read together; None if every row can be read alone."""

    def read(self, rows: Int[Tensor, " batch"]) -> Shaped[Tensor, "batch channel height width"]:
        """Pixels of these rows: uint8 in 0..255, or float in [0, 1]."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """All pixels in one tensor, which the splits share."""

    pixels: UInt8[Tensor, "n channel height width"] | Float[Tensor, "n channel height width"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channel, height and width."""
        channel, height, width = self.pixels.shape[1:]
        return channel, height, width

    @property
    def chunks(self) -> None:
        """Every row can be read alone."""

    def read(self, rows: Int[Tensor, " batch"]) -> Shaped[Tensor, "batch channel height width"]:
        """Pixels of these rows, as they are stored."""
        return self.pixels[rows]


@dataclass(frozen=True, eq=False)
class Images:
    """A split: an ordered choice of labelled images.

    `index` holds each image's stable number in its original source file, which joins the records of several networks;
    `rows` says where the image lies in `pixels`. The two differ only where the source names images that are not there.
    """

    pixels: Pixels
    rows: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]
    index: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Int[Tensor, " batch"] | Sequence[int]) -> Batch:
        """Images in [0, 1] as float32, and labels, at these positions (0 to len - 1) of the split."""
        chosen = torch.as_tensor(positions, dtype=torch.int64)
        pixels = self.pixels.read(self.rows[chosen])
        return (pixels / 255 if pixels.dtype == torch.uint8 else pixels), self.labels[chosen]

    def select(self, positions: Int[Tensor, " m"]) -> "Images":
        """The split that holds only these positions, in this order; no pixels are copied."""
        return type(self)(self.pixels, self.rows[positions], self.labels[positions], self.index[positions])

    def take(self, n: int, seed: int = 0) -> "Images":
        """A random subset of n images, always the same for one seed; a smaller subset is the beginning of a larger one.

        Raises:
            ValueError: n is negative or larger than the split.
        """
        if not 0 <= n <= len(self):
            raise ValueError(f"cannot take {n} images of a split that has {len(self)}.")
        return self.select(torch.randperm(len(self), generator=Generator().manual_seed(seed))[:n])


def digest(split: Images, pixels: int = 1_000_000) -> str:
    """Twelve hexadecimal digits that tell one split from another: its labels, its places in the source, some pixels."""
    shown = min(len(split), max(1, pixels // prod(split.pixels.shape)))
    content = sha256()
    for tensor in (split.index, split.labels, *split.batch(range(shown))):
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:12]


def batches(
    split: Images,
    batch_size: int,
    *,
    generator: Generator | None = None,
    augment: Augment | None = None,
    drop_last: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """One pass over a split.

    Args:
        split: the images.
        batch_size: images per batch; the last batch may be smaller.
        generator: the images come in an order drawn from it (on the CPU); without it, in the split's own order.
        augment: called as augment(images, generator) on every whole batch.
        drop_last: leave out a last batch that is smaller.
        share: (i, n) gives of every batch only each n-th image from the i-th, for one of n processes; all draw the same
            order, and each its own augmentation.

    Raises:
        ValueError: batch_size is not positive, or augment is given without a generator.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
    if augment is not None and generator is None:
        raise ValueError("augment needs a generator to draw from, but generator is None.")
    order = torch.arange(len(split)) if generator is None else shuffled(split, generator)
    parts = [part for part in order.split(batch_size) if len(part) >= (batch_size if drop_last else 1)]
    which, processes = share
    parts = [part[which::processes] for part in parts]
    if generator is not None and which > 0:
        generator.manual_seed(generator.initial_seed() + which)

    def read(part: Tensor) -> Batch:
        images, labels = split.batch(part)
        return (images if augment is None or generator is None else augment(images, generator)), labels

    return read_ahead(read, parts)


def shuffled(split: Images, generator: Generator) -> Int[Tensor, " n"]:
    """The positions of a split in random order.

    Rows that can only be read together are kept within one stretch: the chunks are put in random order, and the images
    are shuffled within every MIXED_CHUNKS successive chunks. A uniform shuffle would read a chunk for every image.
    """
    noise = torch.randperm(len(split), generator=generator)
    starts = split.pixels.chunks
    if starts is None:
        return noise
    chunk = torch.bucketize(split.rows, starts, right=True) - 1
    stretch = torch.randperm(len(starts), generator=generator)[chunk] // MIXED_CHUNKS
    return torch.argsort(stretch * len(split) + noise)


def read_ahead(read: Callable[[Tensor], Batch], parts: Sequence[Tensor]) -> Iterator[Batch]:
    """Read each part one step before it is asked for, so that decoding, augmentation and training overlap."""
    following: Iterable[Tensor | None] = [*parts[1:], None]
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(read, parts[0]) if parts else None
        for part in following:
            if coming is None:
                return
            batch = coming.result()
            coming = None if part is None else reader.submit(read, part)
            yield batch


def crop_and_flip(
    images: Float[Tensor, "batch channel height width"],
    generator: Generator,
    *,
    padding: int = 4,
    mode: Literal["constant", "reflect"] = "constant",
    flip: bool = True,
) -> Float[Tensor, "batch channel height width"]:
    """Pad, crop back to the old size at a random place, and mirror every second image or so, each image on its own.

    The customary augmentation of CIFAR-10, which pads by 4 with zeros (He et al. 2016, section 4.2). Digits should not
    be mirrored: flip=False.

    Args:
        images: any range; the result holds only pixels of `images`, and zeros where mode is "constant".
        generator: on the CPU or on the images' device.
        padding: pixels on each side.
        mode: what lies outside the image, zeros ("constant") or its mirror image ("reflect").
        flip: mirror left and right with probability 1/2.
    """
    count, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator, device=generator.device)
    top, left = offsets.to(images.device)
    coins = torch.rand((count, 1), generator=generator, device=generator.device)
    mirrored = (coins < (0.5 if flip else 0.0)).to(images.device)
    across = torch.arange(width, device=images.device).expand(count, width)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.where(mirrored, width - 1 - across, across)
    padded = F.pad(images, (padding,) * 4, mode=mode)
    image = torch.arange(count, device=images.device)[:, None, None]
    # Indexing around the channel axis moves that axis to the end.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
