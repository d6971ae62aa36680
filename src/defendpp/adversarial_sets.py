"""Adversarial sets: the images that one attack makes of a split on one source, stored in pieces as they are made.

So long work resumes, memory does not grow with the number of images, and a set made for one network serves every other.
"""

import ctypes
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from defendpp.adaptive import adapted, decoder_for
from defendpp.attacks import Prepared, prepare
from defendpp.attacks.precision import exact_float32
from defendpp.data import Images, digest
from defendpp.files import short_hash, write_whole
from defendpp.networks import fingerprint, home
from defendpp.progress import Progress
from defendpp.threats import Attack


@dataclass(frozen=True)
class Network:
    """A classifier under evaluation."""

    name: str
    """What tables call it."""
    model: nn.Module
    """Images in [0, 1] to logits."""
    id: str
    """Hash of its weights; `network` computes it."""
    fast: Prepared | None = None
    """The model made fast for attacks, where that was done already."""


def network(name: str, model: nn.Module) -> Network:
    """A classifier to evaluate, in eval mode, with the hash of its weights; `TypeError` for no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a network needs a torch module, not {type(model).__name__}: of a run, its classifier")
    return Network(name, model.eval(), fingerprint(model))


@dataclass(frozen=True)
class Piece:
    """Some images of an adversarial set."""

    positions: Int[Tensor, " n"]
    """Where they lie in the split."""
    images: Float[Tensor, "n channel height width"]
    success: Bool[Tensor, " n"]
    """On the source."""
    queries: Int[Tensor, " n"]


def adversarial_set(
    source: Network,
    attack: Attack,
    split: Images,
    sets: Path,
    *,
    data: str,
    seed: int = 0,
    device: str | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Iterator[Piece]:
    """The images that `attack` makes of `split` on `source`, in order, piece by piece.

    They lie in a folder of their own in `sets`, `set_folder`. Pieces already there are read; the others are made and
    stored. Each has random numbers of its own, from (seed, piece), so that it does not matter when or in how many
    sittings they are made. The folder's `set.json` says what they are; `ValueError` for a damaged piece. device: where
    to compute; by default where the source's model is. share: (i, n) is only every n-th piece from the i-th.
    """
    attack = adapted(attack, source.model)
    folder = set_folder(source, attack, split, sets, data=data, seed=seed)
    piece = piece_size(split, attack)
    made_on: Prepared | None = None
    about = {
        "source": source.name,
        "source_id": source.id,
        "attack": attack.name,
        "norm": attack.norm,
        "epsilon": attack.epsilon,
        "settings": dict(attack.settings),
        "seed": seed,
        "piece": piece,
        "data": data,
        "images": len(split),
    }
    _claim(folder, about)
    for start in range(share[0] * piece, len(split), share[1] * piece):
        positions = torch.arange(start, min(start + piece, len(split)))
        path = folder / f"{start:08d}.safetensors"
        if not path.exists():
            made_on = made_on or ready(source, split, device)
            images, labels = split.batch(positions)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            random = {"generator": generator} if attack.is_random else {}
            place = device_of(source.model, device)
            result = attack.run(made_on, images.to(place), labels.to(place), **random)
            tensors = {"images": result.images, "success": result.success, "queries": result.queries}
            stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            write_whole(path, partial(safetensors.torch.save_file, stored))
            del result, tensors, stored
            release_memory()
        if progress is not None:
            progress(f"{attack} on {source.name}", int(positions[-1]) + 1, len(split))
        try:
            read = safetensors.torch.load_file(path)
            yield Piece(positions, read["images"], read["success"], read["queries"])
        except (SafetensorError, KeyError, OSError) as problem:
            raise ValueError(f"{path} is damaged ({problem}): remove it, and it is made again") from problem


def set_folder(source: Network, attack: Attack, split: Images, sets: Path, *, data: str, seed: int = 0) -> Path:
    """Where in `sets` the adversarial set lies that `attack` makes of `split` on `source`."""
    attack = adapted(attack, source.model)
    key = [source.id, attack.name, attack.norm, repr(attack.epsilon), dict(attack.settings), seed, data, digest(split)]
    used = decoder_for(attack, source.model)
    if used is not None:  # without it the same attack is another
        key.append(fingerprint(used.auto_encoder))
    return sets / short_hash(key)


def ready(each: Network, split: Images, device: str | None) -> Prepared:
    """The network on its device, made fast for attacks."""
    if each.fast is not None:
        return each.fast
    images, _ = split.batch(range(min(8, len(split))))
    place = device_of(each.model, device)
    return prepare(each.model.to(place), images.to(place))


def device_of(model: nn.Module, device: str | None) -> torch.device:
    """The device asked for, or the model's own."""
    return home(model) if device is None else torch.device(device)


def piece_size(split: Images, attack: Attack | None = None) -> int:
    """Images to work on at a time: 500 of CIFAR-10's size, fewer of larger ones, so that memory is about the same.

    A fifth of that for AutoAttack, which may take ten seconds an image, so that an interruption loses minutes.
    """
    size = min(500, max(10, 500 * 3 * 32 * 32 // math.prod(split.pixels.shape)))
    return max(10, size // 5) if attack is not None and attack.name == "auto_attack" else size


def predictions(model: nn.Module, images: Tensor, *, device: str | None = None) -> Int[Tensor, " n"]:
    """The predicted class of each image, on the CPU; computed on `device`, where the model is then left."""
    place = device_of(model, device)
    model = model.to(place)  # outside inference mode, or no gradient could pass the weights that it moves ever again
    with torch.inference_mode(), exact_float32():
        predicted: Tensor = model(images.to(place)).argmax(1).cpu()
    return predicted


def release_memory() -> None:
    """Give freed memory back to the system, where glibc keeps it in holes between what lives on: the records."""
    with suppress(OSError, AttributeError):  # another system
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Write what the set is, or check that it is the set that lies there."""
    path = folder / "set.json"
    if path.exists():
        present = json.loads(path.read_text())
        for key, value in about.items():
            if present.get(key) != value and key != "source":  # the same network may be called otherwise now
                raise ValueError(
                    f"{folder} holds another adversarial set: {key} is {present.get(key)!r}, not {value!r}"
                )
        return
    text = json.dumps(about, indent=2) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))
