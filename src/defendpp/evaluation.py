"""Network x attack x threat model -> records.

White-box and transfer are one thing: a network is shown an adversarial set, images that one attack made on one source.
If the source is the network itself that is white-box, else it is a transfer from that source. Sets are stored in pieces
as they are made, so that long work resumes, memory does not grow with the number of images, and a set made for one
network serves every other.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from defendpp import records
from defendpp.attacks import Prepared, prepare
from defendpp.data import Images
from defendpp.objective import Defend
from defendpp.runs import Run, fingerprint
from defendpp.threats import Attack

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many images are done, and of how many."""


@dataclass(frozen=True)
class Network:
    """A classifier under evaluation."""

    name: str
    """What tables call it."""
    model: nn.Module
    """Images in [0, 1] to logits."""
    id: str
    """Hash of its weights; `network` computes it."""
    attacked: Prepared | None = None
    """The model made fast for attacks, where that was done already."""


def network(name: str, model: nn.Module) -> Network:
    """A classifier to evaluate, in eval mode, with the hash of its weights."""
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
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Iterator[Piece]:
    """The images that `attack` makes of `split` on `source`, in order, piece by piece.

    Pieces already in `folder` are read; the others are made and stored there. Each has random numbers of its own, from
    (seed, piece), so that it does not matter when or in how many sittings they are made. The folder's `set.json` says
    what they are; `ValueError` where it holds another set, or a damaged piece.
    """
    piece = piece_size(split)
    about = {
        "source": source.name,
        "source_id": source.id,
        "attack": attack.name,
        "norm": attack.norm,
        "epsilon": attack.epsilon,
        "settings": dict(attack.settings),
        "seed": seed,
        "piece": piece,
        "images": len(split),
        "split": _digest(split.index.numpy().tobytes()),
    }
    _claim(folder, about)
    model: nn.Module | None = None
    for start in range(0, len(split), piece):
        positions = torch.arange(start, min(start + piece, len(split)))
        path = folder / f"{start:08d}.safetensors"
        if not path.exists():
            images, labels = split.batch(positions)
            model = model or _ready(source, split, device).attacked or source.model
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            random = {"generator": generator} if attack.is_random else {}
            result = attack.run(model, images.to(device), labels.to(device), **random)
            tensors = {"images": result.images, "success": result.success, "queries": result.queries}
            _save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
        if progress is not None:
            progress(f"{attack} on {source.name}", int(positions[-1]) + 1, len(split))
        try:
            stored = safetensors.torch.load_file(path)
            yield Piece(positions, stored["images"], stored["success"], stored["queries"])
        except (SafetensorError, KeyError, OSError) as problem:
            raise ValueError(f"{path} is damaged ({problem}): remove it, and it is made again") from problem


def _ready(each: Network, split: Images, device: str) -> Network:
    """The network on its device, and made fast for attacks."""
    if each.attacked is not None:
        return each
    images, _ = split.batch(range(min(8, len(split))))
    return replace(each, attacked=prepare(each.model.to(device), images.to(device)))


def piece_size(split: Images) -> int:
    """Images to work on at a time: 500 of CIFAR-10's size, fewer of larger ones, so that memory is about the same."""
    return min(500, max(10, 500 * 3 * 32 * 32 // math.prod(split.pixels.shape)))


@torch.inference_mode()
def predictions(model: nn.Module, images: Tensor, *, device: str = "cpu") -> Int[Tensor, " n"]:
    """The predicted class of each image."""
    predicted: Tensor = model(images.to(device)).argmax(1).cpu()
    return predicted


def clean_records(
    target: Network, split: Images, *, data: str, split_name: str = "test", scale: str = "cpu", device: str = "cpu"
) -> pd.DataFrame:
    """The records of `target` on the images as they are."""
    model = target.model.to(device)
    frames = []
    for positions in torch.arange(len(split)).split(piece_size(split)):
        images, labels = split.batch(positions)
        predicted = predictions(model, images, device=device).numpy()
        n = len(positions)
        frames.append(
            _frame(
                target,
                index=split.index[positions].numpy(),
                labels=labels.numpy(),
                clean=predicted,
                predicted=predicted,
                success=np.zeros(n, bool),
                l2=np.zeros(n),
                linf=np.zeros(n),
                queries=np.zeros(n, np.int64),
                fixed={
                    "data": data,
                    "split": split_name,
                    "attack": "none",
                    "norm": "",
                    "epsilon": np.nan,
                    "settings": "{}",
                    "knowledge": "clean",
                    "source": "",
                    "source_id": "",
                    "seed": 0,
                    "scale": scale,
                },
            )
        )
    return pd.concat(frames, ignore_index=True)


def attacked_records(
    targets: Sequence[Network],
    source: Network,
    attack: Attack,
    split: Images,
    folder: Path,
    *,
    data: str,
    split_name: str = "test",
    scale: str = "cpu",
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """The records of each of `targets`, by id, on the adversarial set that `attack` makes on `source`.

    A target with the source's weights is white-box, every other a transfer.
    """
    frames: dict[str, list[pd.DataFrame]] = {target.id: [] for target in targets}
    for made in adversarial_set(source, attack, split, folder, seed=seed, device=device, progress=progress):
        clean, labels = split.batch(made.positions)
        change = (made.images - clean).flatten(1).double()
        for target in targets:
            model = target.model.to(device)
            frames[target.id].append(
                _frame(
                    target,
                    index=split.index[made.positions].numpy(),
                    labels=labels.numpy(),
                    clean=predictions(model, clean, device=device).numpy(),
                    predicted=predictions(model, made.images, device=device).numpy(),
                    success=made.success.numpy(),
                    l2=change.norm(dim=1).numpy(),
                    linf=change.abs().amax(1).numpy(),
                    queries=made.queries.long().numpy(),
                    fixed={
                        "data": data,
                        "split": split_name,
                        "attack": attack.name,
                        "norm": attack.norm,
                        "epsilon": np.nan if attack.epsilon is None else attack.epsilon,
                        "settings": json.dumps(dict(attack.settings), sort_keys=True),
                        "knowledge": "white-box" if target.id == source.id else "transfer",
                        "source": source.name,
                        "source_id": source.id,
                        "seed": seed,
                        "scale": scale,
                    },
                )
            )
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}


def evaluate(
    networks: Sequence[Network],
    chosen: Sequence[Attack],
    split: Images,
    folder: Path,
    *,
    data: str,
    source: Network | None = None,
    transferred: Sequence[Attack] | None = None,
    white_box: bool = True,
    split_name: str = "test",
    scale: str = "cpu",
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure all `networks` on `split`: clean, white-box under `chosen`, and on `transferred` images from `source`.

    `transferred` is by default `chosen`. Records go to `folder`/records, one file a job, and adversarial sets to
    `folder`/sets; what is there already is not done again. Returns all these records.

    Raises `ValueError` before any work where there is nothing to measure, two networks share a name or weights, or the
    source is one of the networks: its "transfer" would be white-box.
    """
    if len(split) == 0:
        raise ValueError(f"there are no {split_name} images in {data} to measure on")
    for attribute in ("name", "id"):
        values = [getattr(each, attribute) for each in networks]
        for value in values:
            if values.count(value) > 1:
                same = " and ".join(repr(each.name) for each in networks if getattr(each, attribute) == value)
                raise ValueError(
                    f"networks must differ in {'name' if attribute == 'name' else 'weights'}: {same} do not"
                )
    if source is not None:
        for each in networks:
            if each.id == source.id and len(networks) == 1:
                raise ValueError(
                    f"the source of a transfer must be another network than its target, but {source.name!r} and "
                    f"{each.name!r} have the same weights: that is white-box"
                )
    files = []
    ready = {each.id: each for each in networks}  # made fast when first attacked, and then kept
    about = _digest(split.index.numpy().tobytes())
    for each in networks:
        path = folder / "records" / f"{each.id}-{about}-clean.parquet"
        if not path.exists():
            made = clean_records(each, split, data=data, split_name=split_name, scale=scale, device=device)
            records.write(made, path)
        files.append(path)
    jobs = [(each, attack, [each]) for attack in chosen for each in networks] if white_box else []
    if source is not None:
        others = [each for each in networks if each.id != source.id]
        jobs += [(source, attack, others) for attack in (chosen if transferred is None else transferred)]
    for number, (made_on, attack, targets) in enumerate(jobs, 1):
        name = _digest(json.dumps([made_on.id, str(attack), attack.norm, dict(attack.settings), seed, about]).encode())
        paths = {each.id: folder / "records" / f"{each.id}-{name}.parquet" for each in targets}
        missing = [each for each in targets if not paths[each.id].exists()]
        if missing:
            ready[made_on.id] = _ready(ready.get(made_on.id, made_on), split, device)
            frames = attacked_records(
                missing,
                ready[made_on.id],
                attack,
                split,
                folder / "sets" / name,
                data=data,
                split_name=split_name,
                scale=scale,
                seed=seed,
                device=device,
                progress=progress and _numbered(progress, f"{number}/{len(jobs)} "),
            )
            for each in missing:
                records.write(frames[each.id], paths[each.id])
        files += paths.values()
    return records.read(files)


def evaluate_runs(
    runs: Sequence[Run],
    chosen: Sequence[Attack],
    split: Images,
    folder: Path,
    *,
    data: str,
    source: Run | None = None,
    transferred: Sequence[Attack] | None = None,
    shown: Attack | None = None,
    white_box: bool = True,
    notes: dict[str, str] | None = None,
    scale: str = "cpu",
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """`evaluate` for trained runs, with all that a report needs beside the records.

    `folder` then also holds pictures of each network under the attack `shown`, and `evaluation.json` with what the
    report compares: the baseline (the source, or the first undefended network) and the control (another undefended
    network, which is neither source nor baseline), the budgets, and `notes`.
    """
    for run in runs:
        if run.image_shape != split.pixels.shape:
            raise ValueError(f"{run.name!r} takes images of {run.image_shape}, not {split.pixels.shape}, as {data} has")
    networks = [network(run.name, run.classifier) for run in runs]
    made = evaluate(
        networks,
        chosen,
        split,
        folder,
        data=data,
        source=network(source.name, source.classifier) if source else None,
        transferred=transferred,
        white_box=white_box,
        scale=scale,
        seed=seed,
        device=device,
        progress=progress,
    )
    if shown is not None:
        (folder / "pictures").mkdir(exist_ok=True)
        for run, each in zip(runs, networks, strict=True):
            arrays = pictures(each, run.objective, shown, split)
            _replace(folder / "pictures" / f"{each.id}.npz", partial(_save_arrays, arrays))
    undefended = [run for run in runs if run.recipe.defence == "none" and run.recipe.noise == 0]
    first = source if source and source.id in {run.id for run in runs} else (undefended or runs)[0]
    others = [run.name for run in undefended if run.id not in {first.id, source.id if source else ""}]
    about = {
        "networks": [run.id for run in runs],
        "baseline": first.name,
        "control": others[0] if others and source else None,
        "budgets": {attack.norm: attack.epsilon for attack in reversed(chosen) if attack.epsilon is not None},
        "notes": notes or {},
    }
    _replace(folder / "evaluation.json", lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))
    return made


@torch.inference_mode()
def pictures(target: Network, objective: Defend | None, attack: Attack, split: Images, n: int = 8) -> dict[str, Any]:
    """Figure 7 for one network: the first n images of `split`, `attack` on them, and the decoder's view of both.

    A dict of NumPy arrays as `report.Gallery` describes; without the decoder's images where `objective` is None.
    """
    images, labels = split.batch(range(min(n, len(split))))
    with torch.inference_mode(False):
        adversarial = attack.run(target.model.cpu(), images, labels).images
    shown: dict[str, Any] = {
        "clean": images.numpy(),
        "adversarial": adversarial.numpy(),
        "label": labels.numpy(),
        "clean_prediction": predictions(target.model, images).numpy(),
        "prediction": predictions(target.model, adversarial).numpy(),
        "attack": np.array(str(attack)),
    }
    if objective is not None:
        for name, seen in (("clean", images), ("adversarial", adversarial)):
            rebuilt = objective.eval().classify_and_rebuild(target.model, seen)[1][0]
            shown[f"{name}_reconstruction"] = rebuilt.clamp(0, 1).numpy()
    return shown


def _frame(
    target: Network,
    *,
    index: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    clean: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    success: Bool[np.ndarray, " n"],
    l2: Float[np.ndarray, " n"],
    linf: Float[np.ndarray, " n"],
    queries: Int[np.ndarray, " n"],
    fixed: dict[str, Any],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "network": target.name,
            "network_id": target.id,
            "image": index,
            "label": labels,
            "clean_prediction": clean,
            "prediction": predicted,
            "correct": predicted == labels,
            "success": success,
            "l2": l2,
            "linf": linf,
            "queries": queries,
            **fixed,
        }
    )


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Write what the set is, or check that it is the set that lies there."""
    path = folder / "set.json"
    if path.exists():
        present = json.loads(path.read_text())
        for key, value in about.items():
            if present.get(key) != value:
                raise ValueError(
                    f"{folder} holds another adversarial set: {key} is {present.get(key)!r}, not {value!r}; "
                    "choose another folder"
                )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is no adversarial set: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda temporary: temporary.write_text(json.dumps(about, indent=2) + "\n"))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    _replace(path, lambda temporary: safetensors.torch.save_file(tensors, temporary))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _save_arrays(arrays: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append its own ending
        np.savez_compressed(file, **arrays)


def _numbered(progress: Progress, number: str) -> Progress:
    return lambda what, done, total: progress(number + what, done, total)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
