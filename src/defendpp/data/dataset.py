"""A data set by name, path or tensors, divided into fixed train, validation and test splits."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from defendpp.data.images import Images, InMemory
from defendpp.data.sources import (
    DOWNLOADED,
    as_part,
    check_labels,
    downloaded,
    embedded_digits,
    image_folder,
    nips2017,
    parquet,
)

NAMES = ("mnist-5k", *DOWNLOADED)

# Where the source has test images of its own, validation takes a tenth of train, but never more than this.
LARGEST_VALIDATION = 5000

# A class with fewer images cannot give a tenth of them away, so the split is then not stratified.
SMALLEST_STRATUM = 10


@dataclass(frozen=True, eq=False)
class Data:
    """A data set; its splits have no image in common. Where the source has only test images, the others are empty."""

    name: str
    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(getattr(self, part))} {part}" for part in ("train", "validation", "test"))
        return f"<{self.name}: {parts}, {len(self.classes)} classes>"

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self.test.pixels.shape[0]

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.test.pixels.shape[1]


def load(
    name: str | Path,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
    download: bool = True,
    memory: int = 2**30,
) -> Data:
    """Load a data set.

    Splits are the same for the same seed. A source with test images of its own keeps them as they are, and also its own
    validation images; where it has none, validation is a stratified tenth of train, at most 5,000 images. A source with
    validation images and no test images (ImageNet as usually published) is tested on these. A source in one piece is
    divided 70 / 10 / 20, stratified. Where a class has fewer than 10 images the division is random instead.

    Args:
        name: mnist-5k (5,000 real digits, needs no download), mnist, fashion-mnist, cifar10; or a path: a folder
            `<class>/<image>` or `{train,val,test}/<class>/<image>`; a parquet file or a folder of them in the layout of
            the Hugging Face hub; or the NIPS 2017 folder (`images.csv` and `images/`), all of it test images.
        root: the folder that holds, or gets, downloaded sets (default: a cache folder of the user); a relative path as
            `name` is looked up in it first if it is given. A named set may also lie there as a folder of parquet files.
        image_size: resize the short side to this many pixels and crop the centre; needed where images differ in size.
        seed: of the division into splits.
        download: fetch a named set that is not in root.
        memory: a part of more than so many decoded bytes is decoded from its files each time it is asked for.

    Raises:
        FileNotFoundError: there is nothing at the path, or the set is absent and was not downloaded.
        ValueError: an unknown name, or a source that is corrupt or not as described; the message names the file.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}, expected at least 1.")
    path = Path(root or (cache_folder() if name in DOWNLOADED else ""), name).expanduser()
    if name not in NAMES and not path.exists() and Path(name).expanduser().exists():
        path = Path(name).expanduser()
    if name == "mnist-5k":
        parts, classes = embedded_digits(image_size)
    elif name in DOWNLOADED and not any(path.glob("*.parquet")):
        parts, classes = downloaded(str(name), Path(root or cache_folder()).expanduser(), image_size, download)
    elif not path.exists():
        if isinstance(name, Path) or os.sep in name or "." in name:
            raise FileNotFoundError(f"there is no file or folder at {path}.")
        close = difflib.get_close_matches(name, NAMES, n=1)
        meant = f"; did you mean {close[0]}?" if close else "."
        raise ValueError(f"{name!r} is neither a path nor one of {', '.join(NAMES)}{meant}")
    elif (path / "images.csv").is_file():
        parts, classes = nips2017(path, image_size, memory)
    elif path.is_file() or any(path.glob("*.parquet")):
        parts, classes = parquet(path, image_size, memory)
    elif any(path.glob("data/*.parquet")):  # a repository of the Hugging Face hub as it is cloned
        parts, classes = parquet(path / "data", image_size, memory)
    else:
        parts, classes = image_folder(path, image_size, memory)
    return divide(str(name), parts, classes, seed)


def from_tensors(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str] | None = None,
    *,
    test: tuple[Tensor, Tensor] | None = None,
    name: str = "tensors",
    seed: int = 0,
) -> Data:
    """A data set from tensors.

    Args:
        images: (n, channel, side, side) with 1 or 3 channels; uint8, or float in [0, 1] (kept as float32).
        labels: (n,) integers, 0 to len(classes) - 1.
        classes: names of the classes; "0", "1", ... up to the highest label if absent.
        test: images and labels of test images of one's own; without them, `images` is divided 70 / 10 / 20.
        name: what records call the data.
        seed: of the division into splits.

    Raises:
        ValueError: a shape, type or range is not as described.
    """
    given = {"train": (images, labels)} | ({} if test is None else {"test": test})
    for part, (pixels, numbers) in given.items():
        check_tensors(pixels, numbers, part)
    if classes is None:
        classes = tuple(str(label) for label in range(1 + max(int(numbers.max()) for _, numbers in given.values())))
    parts = {}
    for part, (pixels, numbers) in given.items():
        check_labels(numbers, classes, f"the {part} part of {name}")
        stored = InMemory(pixels.cpu() if pixels.dtype == torch.uint8 else pixels.cpu().float())
        parts[part] = as_part(stored, numbers.cpu().long())
    return divide(name, parts, tuple(classes), seed)


def check_tensors(images: Tensor, labels: Tensor, part: str) -> None:
    """Refuse images and labels that are not what `from_tensors` says.

    Raises:
        ValueError: with the offending shape, type or range.
    """
    for name, given in {"images": images, "labels": labels}.items():
        if not isinstance(given, Tensor):
            raise ValueError(f"{part} {name} are a {type(given).__name__}, expected a torch.Tensor.")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3] or 0 in shape:
        raise ValueError(f"{part} images have the shape {shape}, expected (n, 1 or 3, side, side).")
    if tuple(labels.shape) != shape[:1]:
        raise ValueError(
            f"{part} labels have the shape {tuple(labels.shape)}, expected ({shape[0]},), one for each image."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{part} labels are {labels.dtype}, expected integers.")
    if images.dtype != torch.uint8:
        if not images.is_floating_point():
            raise ValueError(f"{part} images are {images.dtype}, expected uint8 or float.")
        low, high = float(images.min()), float(images.max())
        # Written so that NaN is refused, too.
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{part} images are floats from {low:g} to {high:g}, expected [0, 1].")


def cache_folder() -> Path:
    """Where downloads go unless told otherwise: $XDG_CACHE_HOME/defendpp, usually ~/.cache/defendpp."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "defendpp")


def divide(name: str, parts: dict[str, Images], classes: tuple[str, ...], seed: int) -> Data:
    """Make train, validation and test of the parts that a source has, as `load` says.

    Raises:
        ValueError: the parts' images differ in shape, or there are too few to divide.
    """
    shapes = {part: images.pixels.shape for part, images in parts.items()}
    if len(set(shapes.values())) > 1:
        seen = " but ".join(f"{part} images are {'x'.join(map(str, shape))}" for part, shape in shapes.items())
        raise ValueError(
            f"{name}: {seen} (channels x height x width), expected one shape; image_size can make the sizes equal."
        )
    train, validation = parts.get("train"), parts.get("validation")
    test = parts.get("test")
    if test is None and validation is not None:
        test, validation = validation, None
    nothing = torch.arange(0)
    if train is None:
        assert test is not None
        return Data(name, test.select(nothing), validation or test.select(nothing), test, classes)
    n = len(train)
    if test is None:
        if n < SMALLEST_STRATUM:
            raise ValueError(
                f"{name} has {n} images, expected at least {SMALLEST_STRATUM} to divide into train, validation, test."
            )
        kept, held_out, tested = partition(train.labels, (n // 10, n // 5), seed)
        return Data(name, train.select(kept), train.select(held_out), train.select(tested), classes)
    if validation is None:
        kept, held_out, _ = partition(train.labels, (min(n // 10, LARGEST_VALIDATION), 0), seed)
        train, validation = train.select(kept), train.select(held_out)
    return Data(name, train, validation, test, classes)


def partition(
    labels: Int[Tensor, " n"], held_out: tuple[int, int], seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " validation"], Int[Tensor, " test"]]:
    """Positions, ascending, of a train, a validation and a test split, drawn at random.

    `held_out` are the sizes of validation and test. Every class gives the same share, rounded down; where a class has
    fewer than SMALLEST_STRATUM images, the draw does not look at classes and the sizes are exact.
    """
    n = len(labels)
    order = torch.randperm(n, generator=Generator().manual_seed(seed))
    counts = torch.bincount(labels)
    small = bool((counts[counts > 0] < SMALLEST_STRATUM).any())
    strata = [order] if small else [order[labels[order] == label] for label in counts.nonzero().flatten()]
    splits: tuple[list[Tensor], ...] = ([], [], [])
    for stratum in strata:
        validation, test = (len(stratum) * size // n for size in held_out)
        sizes = [len(stratum) - validation - test, validation, test]
        for split, positions in zip(splits, stratum.split(sizes), strict=True):
            split.append(positions)
    train, validation_, test_ = (torch.cat(split).sort().values for split in splits)
    return train, validation_, test_
