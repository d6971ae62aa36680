"""Network x attack x threat model -> records.

White-box and transfer are one thing: a network is shown an adversarial set, images that one attack made on one source.
If the source is the network itself that is white-box, else it is a transfer from that source.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from defendpp import checks, records, threats
from defendpp.adaptive import adapted, stand_ins
from defendpp.adversarial_sets import (
    Network,
    adversarial_set,
    device_of,
    network,
    piece_size,
    predictions,
    ready,
    set_folder,
)
from defendpp.attacks import Prepared, prepare
from defendpp.certify import certify
from defendpp.data import Images, digest
from defendpp.files import short_hash, write_arrays, write_whole
from defendpp.networks import home
from defendpp.objective import Defend
from defendpp.progress import Progress
from defendpp.runs import Run
from defendpp.threats import Attack

PICTURES = 8
"""Images that a report shows of each network."""
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
                        "settings": _settings(attack),
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

    Raises `ValueError` before any work where there is nothing to measure, something is there twice, or the source is
    the only network: its "transfer" would be white-box.
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


def evaluate_runs(
    runs: Sequence[Run],
    chosen: Sequence[Attack],
    split: Images,
    folder: Path,
    *,
    data: str,
    source: Run | None = None,
    transferred: Sequence[Attack] | None = None,
    sets: Path | None = None,
    shown: Attack | None = None,
    checked_on: int = 30,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """`evaluate` for trained runs, with all that a report needs beside the records.

    `folder` then also holds pictures of each network under the attack `shown`, what `checks.check` finds on the first
    `checked_on` images (0: nothing is checked), and `evaluation.json`: which files hold the records, and what the
    report compares: the baseline (the source, or the first undefended network), the control (an undefended network
    that is not the source), and the budget of each norm.
    """
    everyone = [*runs, *([source] if source else [])]
    for run in everyone:
        if run.image_shape != split.pixels.shape:
            raise ValueError(f"{run.name!r} takes images of {run.image_shape}, not {split.pixels.shape}, as {data} has")
        if run.recipe.scale != runs[0].recipe.scale:
            raise ValueError(
                f"{run.name!r} is of scale {run.recipe.scale}, but {runs[0].name!r} of {runs[0].recipe.scale}"
            )
    networks = [network(run.name, run.classifier) for run in runs]
    made_on = network(source.name, source.classifier) if source else None
    files = measure(
        networks,
        chosen,
        split,
        folder,
        data=data,
        source=made_on,
        transferred=transferred,
        sets=sets,
        scale=runs[0].recipe.scale,
        seed=seed,
        device=device,
        progress=progress,
    )
    for each in networks:  # where all was measured before, nothing has moved them yet
        each.model.to(device_of(each.model, device))
    if shown is not None:
        for run, each in zip(runs, networks, strict=True):
            path = folder / "pictures" / f"{each.id}.npz"
            if not _is_shown(path, each, shown, split):
                write_arrays(path, pictures(each, run.objective, shown, split))
    undefended = [run for run in runs if run.recipe.defence == "none" and run.recipe.noise == 0]
    first = source if source and source.id in {run.id for run in runs} else (undefended or runs)[0]
    controls = [run.name for run in undefended if source and run.id != source.id]
    about: dict[str, Any] = {
        "records": [path.name for path in files],
        "networks": [run.id for run in runs],
        "baseline": first.name,
        "control": controls[0] if controls else None,
        "budgets": {attack.norm: attack.epsilon for attack in reversed(chosen) if attack.epsilon is not None},
        "notes": {"Versions": f"defendpp {version('defendpp')}, torch {torch.__version__}"},
    }
    if checked_on:
        others = [*([made_on] if made_on else []), *networks]
        budget = next(((each.norm, each.epsilon) for each in chosen if each.epsilon), None)
        about["checks"] = {
            each.name: _checked(each, others, budget, split.take(min(checked_on, len(split))), folder, seed, progress)
            for each in networks
        }
    text = json.dumps(about, indent=2) + "\n"
    write_whole(folder / "evaluation.json", lambda path: path.write_text(text))
    return records.read(files)


def _checked(
    each: Network,
    others: Sequence[Network],
    budget: tuple[str, float] | None,
    split: Images,
    folder: Path,
    seed: int,
    progress: Progress | None,
) -> list[dict[str, str]]:
    """What `checks.check` finds of a network where it was not written down before; it is computed where its model is.

    budget: norm and epsilon; by default the paper's. The first of `others` that is another network is what transferred
    images are made on.
    """
    norm, epsilon = budget or ("linf", threats.usual_epsilon(split.pixels.shape))
    other = next((one for one in others if one.id != each.id), None)
    followed, *other_ways = stand_ins(each.model)
    made_of = ["better than chance", *checks.BY_GRADIENT, *["stand-ins"] * len(other_ways)]
    key = short_hash([norm, epsilon, digest(split), other and other.id, seed, *made_of])
    path = folder / "checks" / f"{each.id}-{key}.json"
    if not path.exists():
        if progress is not None:
            progress(f"checks of {each.name}", 0, 1)
        place = home(each.model)
        images, labels = (tensor.to(place) for tensor in split.batch(range(len(split))))
        found = checks.check(
            prepare(followed, images[:8]), images, labels, epsilon=epsilon,
            norm="l2" if norm == "l2" else "linf", seed=seed,
            others=[other.model.to(place)] if other else [], views=other_ways,
        )  # fmt: skip
        text = json.dumps([asdict(check) for check in found], indent=2) + "\n"
        write_whole(path, lambda partial: partial.write_text(text))
    read: list[dict[str, str]] = json.loads(path.read_text())
    return read


def pictures(
    target: Network, objective: Defend | None, attack: Attack, split: Images, n: int = PICTURES
) -> dict[str, Any]:
    """Figure 7 for one network: the first n images of `split`, `attack` on them, and the decoder's view of both.

    A dict of NumPy arrays as `report.Gallery` describes; without the decoder's images where `objective` is None. All is
    computed where the model is.
    """
    place = home(target.model)
    images, labels = (each.to(place) for each in split.batch(range(min(n, len(split)))))
    attack = adapted(attack, target.model)
    adversarial = attack.run(target.model, images, labels).images
    shown: dict[str, Any] = {
        "clean": images.cpu().numpy(),
        "adversarial": adversarial.cpu().numpy(),
        "label": labels.cpu().numpy(),
        "clean_prediction": predictions(target.model, images).numpy(),
        "prediction": predictions(target.model, adversarial).numpy(),
        "attack": np.array(str(attack)),
        "settings": np.array(_settings(attack)),
    }
    if objective is not None:
        objective.to(place).eval()
        for name, seen in (("clean", images), ("adversarial", adversarial)):
            with torch.inference_mode():
                rebuilt = objective.classify_and_rebuild(target.model, seen)[1][0]
            shown[f"{name}_reconstruction"] = rebuilt.clamp(0, 1).cpu().numpy()
    return shown


def _is_shown(path: Path, target: Network, attack: Attack, split: Images) -> bool:
    """Whether the pictures there are what `pictures` makes."""
    if not path.exists():
        return False
    attack = adapted(attack, target.model)
    wanted = {"attack": str(attack), "settings": _settings(attack)}
    with np.load(path) as there:
        same = all(name in there and str(there[name]) == text for name, text in wanted.items())
        return same and np.array_equal(there["clean"], split.batch(range(min(PICTURES, len(split))))[0].numpy())


def _kept_ready(kept: dict[str, Network], source: Network, split: Images, device: str | None) -> Network:
    """The source with its model made fast, which is done once and kept."""
    each = kept.get(source.id, source)
    kept[source.id] = replace(each, fast=ready(each, split, device))
    return kept[source.id]


def _settings(attack: Attack) -> str:
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
