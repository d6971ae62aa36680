"""Images still encoded as PNG or JPEG, in files or in parquet row groups, and their decoding by a pool of threads."""

import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from pyarrow import ArrowException, ChunkedArray
from torch import Tensor

from defendpp.data.images import MIXED_CHUNKS, InMemory, Pixels

# Images decoded at a time where a whole source is gone through: bounds the encoded bytes held meanwhile.
AT_A_TIME = 1024


@runtime_checkable
class Encoded(Protocol):
    """Encoded images by row."""

    @property
    def chunks(self) -> Int[Tensor, " chunk"] | None:
        """First row of each run of rows that can only be read together, or None."""

    def __len__(self) -> int: ...

    def fetch(self, rows: Sequence[int]) -> list[tuple[str, str | BytesIO]]:
        """For each row, what to call the image in messages, and its path or its bytes."""


class Files:
    """One file per image."""

    chunks = None

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, rows: Sequence[int]) -> list[tuple[str, str | BytesIO]]:
        """The paths; whoever decodes them reads them."""
        return [(self.paths[row], self.paths[row]) for row in rows]


class RowGroups:
    """Parquet files with a column of struct<bytes, path>, read one row group at a time; the last few are kept."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        self.column = column
        self.groups = [(file, group) for file in files for group in range(pq.ParquetFile(file).num_row_groups)]
        sizes: list[int] = [pq.ParquetFile(file).metadata.row_group(group).num_rows for file, group in self.groups]
        self.starts = [0, *accumulate(sizes)]
        self.cached = lru_cache(maxsize=2 * MIXED_CHUNKS)(self.read_group)

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def chunks(self) -> Int[Tensor, " chunk"]:
        """First row of every row group."""
        return torch.tensor(self.starts[:-1])

    def read_group(self, number: int) -> ChunkedArray:
        """The encoded images of one row group.

        Raises:
            ValueError: the file is corrupt.
        """
        file, group = self.groups[number]
        try:
            return pq.ParquetFile(file).read_row_group(group, columns=[self.column]).column(0)
        except (ArrowException, OSError) as error:
            raise ValueError(f"row group {group} of {file} cannot be read as parquet ({error}).") from error

    def fetch(self, rows: Sequence[int]) -> list[tuple[str, str | BytesIO]]:
        """The bytes, each row group read once."""
        wanted = defaultdict(list)
        for slot, row in enumerate(rows):
            wanted[bisect_right(self.starts, row) - 1].append((slot, row))
        found: dict[int, tuple[str, str | BytesIO]] = {}
        for number, slots in sorted(wanted.items()):
            images = self.cached(number)
            file, group = self.groups[number]
            for slot, row in slots:
                place = row - self.starts[number]
                image = (images[place].as_py() or {}).get("bytes") or b""
                found[slot] = (f"image {place} of row group {group} of {file}", BytesIO(image))
        return [found[slot] for slot in range(len(rows))]


class Decoded:
    """Encoded images, decoded when they are asked for; nothing decoded is kept."""

    def __init__(self, encoded: Encoded, shape: tuple[int, int, int]) -> None:
        self.encoded = encoded
        self.shape = shape
        self.chunks = encoded.chunks

    def read(self, rows: Int[Tensor, " batch"]) -> UInt8[Tensor, "batch channel height width"]:
        """Decode these rows, fitted to the common shape.

        Raises:
            ValueError: an image is corrupt; the message names it.
        """
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        slots = images.numpy()
        named = self.encoded.fetch(rows.tolist())
        threads = os.cpu_count() or 1

        def decode_every(first: int) -> None:
            for slot in range(first, len(named), threads):
                slots[slot] = decode(*named[slot], self.shape)

        # Pillow releases the interpreter lock while it decodes and resizes, so threads use all cores.
        with ThreadPoolExecutor(max_workers=threads) as pool:
            list(pool.map(decode_every, range(threads)))  # list: so that an error in a thread is raised here
        return images


def hold(encoded: Encoded, image_size: int | None, memory: int) -> Pixels:
    """Decode all images now if they fit into `memory` bytes, otherwise leave them to be decoded when asked for."""
    decoded = Decoded(encoded, common_shape(encoded, image_size))
    if len(encoded) * int(np.prod(decoded.shape)) > memory:
        return decoded
    pixels = torch.empty((len(encoded), *decoded.shape), dtype=torch.uint8)
    for rows in torch.arange(len(encoded)).split(AT_A_TIME):
        pixels[rows] = decoded.read(rows)
    return InMemory(pixels)


def common_shape(encoded: Encoded, image_size: int | None) -> tuple[int, int, int]:
    """Channel, height and width that all images get: one channel if all are gray, else three.

    Reads the images' headers; with an image_size, only until the first that is not gray.

    Raises:
        ValueError: no image_size is given, and the images differ in size or are not square; or one is corrupt.
    """
    gray = True
    first: tuple[str, tuple[int, int]] | None = None
    for start in range(0, len(encoded), AT_A_TIME):
        for name, file in encoded.fetch(range(start, min(start + AT_A_TIME, len(encoded)))):
            with opened(name, file) as image:
                gray = gray and image.mode in ("1", "L")
                first = first or (name, image.size)
                if image_size is None and (image.size != first[1] or image.width != image.height):
                    raise ValueError(f"{size_problem(first, name, image.size)}; give image_size to resize and crop.")
            if image_size is not None and not gray:
                return 3, image_size, image_size
    if first is None:
        raise ValueError("there are no images to read.")
    side = image_size or first[1][0]
    return (1 if gray else 3), side, side


def size_problem(first: tuple[str, tuple[int, int]], name: str, size: tuple[int, int]) -> str:
    """What is wrong with the size (width, height) of an image, beside that of the first."""
    seen = f"{name} is {size[0]}x{size[1]}"
    return f"{seen} and {first[0]} is {first[1][0]}x{first[1][1]}" if size != first[1] else f"{seen}, not square"


@contextmanager
def opened(name: str, file: str | BytesIO) -> Iterator[Image.Image]:
    """An image file, its pixels not yet decoded; what goes wrong while it is open becomes one sentence."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{name} has pixels of more than 8 bits (mode {image.mode}), expected 8.")
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image ({error}).") from error


def decode(name: str, file: str | BytesIO, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "channel height width"]:
    """Decode one image as gray or RGB and fit it to `shape`."""
    channels, height, width = shape
    with opened(name, file) as image:
        fitted = fit(image.convert("L" if channels == 1 else "RGB"), height)
        return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` (bicubic, antialiased) and crop the centre; unchanged if it has that size."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)


def fit_all(
    pixels: UInt8[Tensor, "n channel height width"], size: int | None
) -> UInt8[Tensor, "n channel size_ size_"]:
    """`fit` for images that are decoded already."""
    if size is None or tuple(pixels.shape[2:]) == (size, size):
        return pixels
    images = (Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in pixels)
    fitted = np.stack([np.asarray(fit(image, size)).reshape(size, size, -1) for image in images])
    return torch.from_numpy(fitted).permute(0, 3, 1, 2).contiguous()
