"""Network x attack x threat model -> records.

White-box and transfer are one thing: a network is shown an adversarial set, images that one attack made on one source.
If the source is the network itself that is white-box, else it is a transfer from that source.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from defendpp import checks, records
from defendpp.adaptive import adapted
from defendpp.adversarial_sets import (
    Network,
    adversarial_set,
    device_of,
    piece_size,
    predictions,
    ready,
    set_folder,
)
from defendpp.attacks import Prepared
from defendpp.certify import certify
from defendpp.data import Images, digest
from defendpp.files import short_hash
from defendpp.progress import Progress
from defendpp.threats import Attack

CERTIFIED_AT_ONCE = 20
"""Images in a file of certificates, each of which takes about a second."""


def clean_records(
    target: Network,
    split: Images,
    *,
    data: str,
    split_name: str = "test",
    scale: str = "cpu",
    device: str | None = None,
) -> pd.DataFrame:
    """The records of `target` on the images as they are."""
    frames = []
    for positions in torch.arange(len(split)).split(piece_size(split)):
        images, labels = split.batch(positions)
        predicted = predictions(target.model, images, device=device).numpy()
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
    sets: Path,
    *,
    data: str,
    split_name: str = "test",
    scale: str = "cpu",
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """The records of each of `targets`, by id, on the adversarial set in `sets` that `attack` makes on `source`.

    A target with the source's weights is white-box, every other a transfer.
    """
    attack = adapted(attack, source.model)
    frames: dict[str, list[pd.DataFrame]] = {target.id: [] for target in targets}
    for made in adversarial_set(source, attack, split, sets, data=data, seed=seed, device=device, progress=progress):
        clean, labels = split.batch(made.positions)
        change = (made.images - clean).flatten(1).double()
        for target in targets:
            frames[target.id].append(
                _frame(
                    target,
                    index=split.index[made.positions].numpy(),
                    labels=labels.numpy(),
                    clean=predictions(target.model, clean, device=device).numpy(),
                    predicted=predictions(target.model, made.images, device=device).numpy(),
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
                        "settings": settings_of(attack),
                        "knowledge": "white-box" if target.id == source.id else "transfer",
                        "source": source.name,
                        "source_id": source.id,
                        "seed": seed,
                        "scale": scale,
                    },
                )
            )
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}


def certified_records(
    target: Network,
    split: Images,
    folder: Path,
    *,
    sigma: float,
    data: str,
    samples: int = 10_000,
    alpha: float = 0.001,
    split_name: str = "test",
    scale: str = "cpu",
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Certify each image of `split` (`certify.certify`); the records go to `folder`, a file for every few images.

    What is there already is not done again. Each file has random numbers of its own, so that it does not matter in how
    many sittings it is done. `correct` is the smoothed classifier's, `l2` the certified radius. What is smoothed is the
    network made fast, equal up to rounding.
    """
    settings = {"sigma": sigma, "samples": samples, "alpha": alpha}
    key = short_hash([target.id, settings, seed, data, digest(split)])
    place = device_of(target.model, device)
    fast: Prepared | None = None
    files = []
    for start in range(0, len(split), CERTIFIED_AT_ONCE):
        positions = torch.arange(start, min(start + CERTIFIED_AT_ONCE, len(split)))
        files.append(folder / f"{target.id}-{key}-{start:06d}.parquet")
        if not files[-1].exists():
            images, labels = split.batch(positions)
            noise = torch.Generator(place).manual_seed(seed * 1_000_003 + start)
            fast = fast or ready(target, split, device)
            found = certify(fast, images.to(place), sigma=sigma, samples=samples, alpha=alpha, generator=noise)
            frame = _frame(
                target,
                index=split.index[positions].numpy(),
                labels=labels.numpy(),
                clean=predictions(target.model, images, device=device).numpy(),
                predicted=found.prediction.numpy(),
                success=(found.prediction != labels).numpy(),
                l2=found.radius.double().numpy(),
                linf=np.zeros(len(positions)),
                queries=found.samples.numpy(),
                fixed={
                    "data": data,
                    "split": split_name,
                    "attack": "smoothing",
                    "norm": "l2",
                    "epsilon": np.nan,
                    "settings": json.dumps(settings, sort_keys=True),
                    "knowledge": "certificate",
                    "source": "",
                    "source_id": "",
                    "seed": seed,
                    "scale": scale,
                },
            )
            records.write(frame, files[-1])
        if progress is not None:
            progress(f"certify {target.name}", int(positions[-1]) + 1, len(split))
    return records.read(files)


def evaluate(
    networks: Sequence[Network],
    chosen: Sequence[Attack],
    split: Images,
    folder: Path | str,
    *,
    data: str,
    source: Network | None = None,
    transferred: Sequence[Attack] | None = None,
    sets: Path | None = None,
    split_name: str = "test",
    scale: str = "cpu",
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure all `networks` on `split`: clean, white-box under `chosen`, and on `transferred` images from `source`.

    `transferred` is by default `chosen`. Records go to `folder`/records, one file a job, and adversarial sets to `sets`
    (by default `folder`/sets), which several evaluations may share; what is there already is not done again. Returns
    the records of this evaluation, whatever else lies in the folder.

    Raises, before any work, `TypeError` for what is no split, and `ValueError` where there is nothing to measure,
    something is there twice, or the source is the only network: its "transfer" would be white-box.
    """
    return records.read(
        measure(
            networks, chosen, split, folder, data=data, source=source, transferred=transferred, sets=sets,
            split_name=split_name, scale=scale, seed=seed, device=device, progress=progress,
        )
    )  # fmt: skip


def measure(
    networks: Sequence[Network],
    chosen: Sequence[Attack],
    split: Images,
    folder: Path | str,
    *,
    data: str,
    source: Network | None = None,
    transferred: Sequence[Attack] | None = None,
    sets: Path | None = None,
    split_name: str = "test",
    scale: str = "cpu",
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """What `evaluate` does; returns the files with the records."""
    folder = Path(folder)
    transferred = chosen if transferred is None else transferred
    _check_jobs(networks, chosen, transferred, split, data, split_name, source)
    ready = {each.id: each for each in networks}  # made fast when first attacked, and then kept
    about = f"{data} {digest(split)}"
    files = []
    for each in networks:
        files.append(_record_file(folder, each, about, scale))
        if not files[-1].exists():
            _warn_of_probabilities(each, split, device)
            records.write(
                clean_records(each, split, data=data, split_name=split_name, scale=scale, device=device), files[-1]
            )
    jobs = _jobs(networks, chosen, transferred, source, split, folder, sets, data, seed, scale)
    for number, job in enumerate(jobs, 1):
        if job.missing:
            made_on = _kept_ready(ready, job.source, split, device)
            frames = attacked_records(
                job.missing, made_on, job.attack, split, sets or folder / "sets", data=data, split_name=split_name,
                scale=scale, seed=seed, device=device,
                progress=progress and _numbered(progress, f"{number}/{len(jobs)} "),
            )  # fmt: skip
            for each in job.missing:
                records.write(frames.pop(each.id), job.files[each.id])
        files += job.files.values()
    return files


def _warn_of_probabilities(each: Network, split: Images, device: str | None) -> None:
    images, _ = split.batch(range(min(8, len(split))))
    place = device_of(each.model, device)
    try:
        checks.logits(each.model.to(place), images.to(place))
    except checks.Complaint as complaint:
        warnings.warn(f"{each.name}: {complaint}; attacks on it fail for the wrong reason", stacklevel=3)


def make_sets(
    networks: Sequence[Network],
    chosen: Sequence[Attack],
    split: Images,
    folder: Path | str,
    share: tuple[int, int],
    *,
    data: str,
    source: Network | None = None,
    transferred: Sequence[Attack] | None = None,
    sets: Path | None = None,
    scale: str = "cpu",
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Make the i-th of n shares, counted from 0, of the adversarial sets that `evaluate` with these arguments needs.

    For one of n processes. When all have done their share, `evaluate` finds everything made, and its records are those
    of a process that made everything: it does not matter who makes a piece.
    """
    folder = Path(folder)
    transferred = chosen if transferred is None else transferred
    ready: dict[str, Network] = {}
    jobs = _jobs(networks, chosen, transferred, source, split, folder, sets, data, seed, scale)
    for number, job in enumerate(jobs, 1):
        if job.missing:
            made_on = _kept_ready(ready, job.source, split, device)
            turn = ((share[0] + number) % share[1], share[1])  # or short sets would all fall to the first process
            for _ in adversarial_set(
                made_on, job.attack, split, sets or folder / "sets", data=data, seed=seed, device=device, share=turn,
                progress=progress and _numbered(progress, f"{number}/{len(jobs)} "),
            ):  # fmt: skip
                pass


@dataclass(frozen=True)
class _Job:
    """An adversarial set that is needed, and whom it is to be shown to."""

    source: Network
    attack: Attack
    targets: Sequence[Network]
    files: dict[str, Path]
    """For the records of each target, by id."""

    @property
    def missing(self) -> list[Network]:
        return [each for each in self.targets if not self.files[each.id].exists()]


def _jobs(
    networks: Sequence[Network],
    chosen: Sequence[Attack],
    transferred: Sequence[Attack],
    source: Network | None,
    split: Images,
    folder: Path,
    sets: Path | None,
    data: str,
    seed: int,
    scale: str,
) -> list[_Job]:
    wanted = [(each, attack, [each]) for attack in chosen for each in networks]
    if source is not None:
        others = [each for each in networks if each.id != source.id]
        wanted += [(source, attack, others) for attack in transferred]
    jobs = []
    for made_on, attack, targets in wanted:
        place = set_folder(made_on, attack, split, sets or folder / "sets", data=data, seed=seed)
        files = {each.id: _record_file(folder, each, place.name, scale, made_on.name) for each in targets}
        jobs.append(_Job(made_on, attack, targets, files))
    return jobs


def _record_file(folder: Path, target: Network, *about: str) -> Path:
    """Where one job's records lie: named by what determines them, the names that they carry included."""
    return folder / "records" / f"{target.id}-{short_hash([target.name, *about])}.parquet"


def _check_jobs(
    networks: Sequence[Network],
    chosen: Sequence[Attack],
    transferred: Sequence[Attack],
    split: Images,
    data: str,
    split_name: str,
    source: Network | None,
) -> None:
    if not isinstance(split, Images):
        raise TypeError(f"evaluate takes a split, as dp.from_tensors(images, labels).test, not {type(split).__name__}")
    if len(split) == 0:
        raise ValueError(f"there are no {split_name} images in {data} to measure on")
    everyone = [*networks, *([source] if source and source.id not in {each.id for each in networks} else [])]
    for what, attribute in (("name", "name"), ("weights", "id")):
        values = [getattr(each, attribute) for each in everyone]
        for value in values:
            if values.count(value) > 1:
                same = " and ".join(repr(each.name) for each in everyone if getattr(each, attribute) == value)
                raise ValueError(f"networks must differ in {what}: {same} do not")
    if source is not None and [each.id for each in networks] == [source.id]:
        raise ValueError(
            f"the source of a transfer must be another network than its target, but {source.name!r} and "
            f"{networks[0].name!r} have the same weights: that is white-box"
        )
    for attacks in (chosen, transferred):
        threats = [(attack.name, attack.norm, attack.epsilon) for attack in attacks]
        for attack, threat in zip(attacks, threats, strict=True):
            if threats.count(threat) > 1:
                raise ValueError(f"the attack {attack} is there {threats.count(threat)} times, expected once")


def _kept_ready(kept: dict[str, Network], source: Network, split: Images, device: str | None) -> Network:
    """The source with its model made fast, which is done once and kept."""
    each = kept.get(source.id, source)
    kept[source.id] = replace(each, fast=ready(each, split, device))
    return kept[source.id]


def settings_of(attack: Attack) -> str:
    """As records have them."""
    return json.dumps(dict(attack.settings), sort_keys=True)


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


def _numbered(progress: Progress, number: str) -> Progress:
    return lambda what, done, total: progress(number + what, done, total)
