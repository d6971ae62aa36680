"""Do the jobs of a study: those that are missing, in order on one machine or side by side on a Ray cluster.

Each job writes its file whole or not at all, and is found done the next time.
"""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from defendpp import adversarial_sets, evaluation, figure_data, paper, published, records
from defendpp import data as datasets
from defendpp.adaptive import with_objectives
from defendpp.data import Data, Images
from defendpp.data.dataset import cache_folder
from defendpp.execution import Execution
from defendpp.files import write_arrays, write_whole
from defendpp.progress import Progress
from defendpp.purifier import Purified
from defendpp.recipe import Recipe
from defendpp.runs import Run, load_run, train
from defendpp.study import Job, Making, Measurement, Picture, Place, Subject, Training, computed, threads
from defendpp.threats import Attack

TESTED_ON = {"imagenet-1000": "nips2017", "imagenet": "nips2017"}
"""Training data whose test images are another set's: the paper's are those of the NIPS 2017 competition."""

EXECUTION: dict[str, Execution] = {"mnist": "channels-last", "cifar10": "bfloat16", "imagenet": "channels-last"}
"""Of every training: stated, not measured, so that all networks of a table are computed in the same way."""

DIGITS, FEW_DIGITS = 4, 2
"""Decimals of the distances that are kept: of minimal-norm attacks on the network itself, whose result they are, and of
all others. Full precision would make up most of the records."""


def perform(
    job: Job,
    place: Place,
    *,
    data_root: Path | None = None,
    device: str | None = None,
    bar: bool = False,
    progress: Progress | None = None,
) -> None:
    """Do one job, whose needs are done, unless another process did it meanwhile; one process at a time does a job.

    Raises what training and measuring raise, and leaves no file then.
    """
    with _locked(place.work / "locks" / job.key):
        if job.is_done(place):
            return
        if isinstance(job, Training):
            _train(job, place, data_root, device, bar)
        elif isinstance(job, Making):
            _make(job, place, data_root, device, progress)
        elif isinstance(job, Measurement):
            _measure(job, place, data_root, device, progress)
        else:
            _picture(job, place, data_root, device)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock; the system frees it however its holder ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _train(job: Training, place: Place, data_root: Path | None, device: str | None, bar: bool) -> None:
    recipe = job.subject.recipe
    folder, kept = place.run(recipe), job.file(place)
    before = json.loads(kept.read_text()) if kept.exists() else {"name": str(job.subject)}
    if _is_finished(folder) and not (folder / "classifier.safetensors").exists():
        shutil.rmtree(folder)  # its weights were deleted: nothing is left to go on from
        _run.cache_clear()  # what is trained now is another network
    if not _is_finished(folder) and not _is_given(recipe, before, folder):
        loaded = _data(recipe.data, data_root, recipe.image_size, recipe.split_seed)
        execution = EXECUTION[job.subject.data]
        accelerator = "auto" if device is None else "gpu" if device.startswith("cuda") else device
        train(recipe, loaded, folder, name=str(job.subject), execution=execution, accelerator=accelerator, progress=bar)
    trained = {**json.loads((folder / "run.json").read_text()), "id": _run(folder).id}
    if before.get("id", trained["id"]) != trained["id"]:
        raise FileExistsError(
            f"{kept} is of other weights than {folder}, which this training of {job.subject} came to (another machine "
            f"or version, another number of threads ({threads(kept)} before, {threads(folder / 'run.json')} now), or a "
            "graphics card, on which no training is the same twice): give the study "
            "a new folder, --results NEW, or its tables would mix two networks"
        )
    text = json.dumps(trained, indent=2) + "\n"
    write_whole(kept, lambda path: path.write_text(text))


def _is_given(recipe: Recipe, kept: Mapping[str, Any], folder: Path) -> bool:
    """Put into `folder` the network of this recipe that comes with the package, unless a training elsewhere was kept.

    Trained anew it would be of other weights than those that the records beside the package speak of.
    """
    given = published.of(recipe.hash)
    if given is None or kept.get("id", _run(given).id) != _run(given).id:
        return False
    shutil.rmtree(folder, ignore_errors=True)  # an own training that was under way
    published.copy(given, folder, kept["name"])
    return True


def _make(job: Making, place: Place, data_root: Path | None, device: str | None, progress: Progress | None) -> None:
    source = _network(_run(place.run(job.source.recipe)), job.source)
    split = _test_images(job.source, data_root, job.images)
    started = time.monotonic()
    settings: dict[str, Any] = {"data": job.source.data, "device": device, "progress": progress}
    for _ in adversarial_sets.adversarial_set(source, job.attack, split, place.work / "sets", **settings):
        pass
    folder = adversarial_sets.set_folder(source, job.attack, split, place.work / "sets", data=job.source.data)
    text = json.dumps({"folder": folder.name, "made": str(job), "seconds": time.monotonic() - started}) + "\n"
    write_whole(job.file(place), lambda path: path.write_text(text))


def _measure(
    job: Measurement, place: Place, data_root: Path | None, device: str | None, progress: Progress | None
) -> None:
    split = _test_images(job.target, data_root, job.images)
    run = _run(place.run(job.target.recipe))
    target = _network(run, job.target)
    settings: dict[str, Any] = {"data": job.target.data, "scale": job.target.scale, "device": device}
    unused: list[Path] = []
    started = time.monotonic()
    if job.attack is None:
        frame = evaluation.clean_records(target, split, **settings)
    elif job.attack.name == "smoothing":
        pieces = place.work / "certificates"
        frame = evaluation.certified_records(
            target, split, pieces, progress=progress, **job.attack.settings, **settings
        )
    else:
        attack, source = job.attack, target
        if attack.name.startswith("adaptive"):
            attack = with_objectives(attack, [run.objective] if run.objective else [])
        if job.through == "bare":
            assert isinstance(run.classifier, Purified)
            attack = _on_reformed(attack, run.classifier, run.id)
            target = source = adversarial_sets.network(f"{job.target}, bare", run.classifier.classifier)
        elif job.through:
            assert isinstance(run.classifier, Purified)
            attack = replace(attack, settings={**attack.settings, "gradient": job.through})
            source = replace(target, model=run.classifier.attacked_through(job.through))
        elif not job.is_white_box:
            source = _network(_run(place.run(job.source.recipe)), job.source)
        sets = place.work / "sets"
        made = evaluation.attacked_records([target], source, attack, split, sets, progress=progress, **settings)
        frame = made[target.id]
        if job.target.role == "comdefend" and not job.is_white_box:
            frame["knowledge"] = "gray-box"  # the attacker knows the classifier and not what stands before it
        if job.makes_its_images:  # nobody else looks at this set
            unused.append(adversarial_sets.set_folder(source, attack, split, sets, data=job.target.data))
    is_distance_told = job.is_white_box and job.attack is not None and job.attack.epsilon is None
    frame[["l2", "linf"]] = frame[["l2", "linf"]].round(DIGITS if is_distance_told else FEW_DIGITS)
    records.write(frame, job.file(place), about={"seconds": f"{time.monotonic() - started:.1f}", "job": str(job)})
    for folder in unused:
        shutil.rmtree(folder)


def _on_reformed(attack: Attack, purified: Purified, id_: str) -> Attack:
    """`attack` on the bare classifier, from the images as the purifier of these weights reforms them."""

    def run(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, **random: Any) -> Any:
        with torch.no_grad():
            reformed = purified.purifier.to(images.device)(images)
        return attack.run(model, reformed, labels, **random)

    return replace(attack, settings={**attack.settings, "images": f"reformed by {id_}"}, run=run)


def _picture(job: Picture, place: Place, data_root: Path | None, device: str | None) -> None:
    if job.figure == "figure2":
        firsts = {each.data: _test_images(each, data_root, None).batch([0])[0][0] for each in job.subjects}
        arrays = {
            f"{data} {name}": array
            for data, image in firsts.items()
            for name, array in figure_data.frequencies(image).items()
        }
    else:
        home = torch.device(device or "cpu")
        source = _run(place.run(job.subjects[0].recipe)).classifier.to(home)
        split = _test_images(job.subjects[0], data_root, None)
        attacks = paper.attacks("mnist")
        images, labels = (each.to(home) for each in split.batch(range(8)))
        if job.figure == "figure5":
            shown = [attacks[name] for name in ("FGSM", "BIM", "C&W", "DDN")]
            arrays = figure_data.examples(source, images, labels, shown)
        else:
            ours = _run(place.run(job.subjects[1].recipe))
            assert ours.objective is not None
            ours.objective.to(home)
            ours.classifier.to(home)
            if job.figure == "figure7":
                adversarial = attacks["FGSM"].run(source, images, labels).images
                arrays = figure_data.reconstructions(ours.classifier, ours.objective, images, adversarial)
            else:
                arrays = {}
                for name, attacked in (("transfer", source), ("white-box", ours.classifier)):
                    batches = (split.batch(part) for part in torch.arange(len(split)).split(500))
                    pieces = (
                        (clean.to(home), attacks["FGSM"].run(attacked, clean.to(home), labels.to(home)).images)
                        for clean, labels in batches
                    )
                    found = figure_data.removal(ours.classifier, ours.objective, pieces)
                    arrays |= {f"{name} {key}": array for key, array in found.items()}
    write_arrays(job.file(place), arrays)


def _is_finished(folder: Path) -> bool:
    try:
        return "result" in json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        return False


def check_data(jobs: Sequence[Job], data_root: Path | None) -> None:
    """Load, and download, the images that these jobs need, before any of them is begun.

    Raises `ValueError`, in one sentence, where that cannot be done.
    """
    needed = set()
    for job in jobs:
        for subject in job.subjects if isinstance(job, Picture) else [computed(job)]:
            recipe = subject.recipe
            name = recipe.data if isinstance(job, Training) else TESTED_ON.get(recipe.data, recipe.data)
            needed.add((name, recipe.image_size, recipe.split_seed))
    for name, image_size, seed in sorted(needed, key=str):
        try:
            _data(name, data_root, image_size, seed)
        except (ValueError, OSError, RuntimeError) as problem:
            place = data_root or cache_folder()
            raise ValueError(f"the study needs {name} in {place} (--data-root): {problem}") from problem


@lru_cache(maxsize=2)
def _data(name: str, root: Path | None, image_size: int | None, seed: int) -> Data:
    return datasets.load(name, root=root, image_size=image_size, seed=seed)


def _test_images(subject: Subject, root: Path | None, images: int | None) -> Images:
    recipe = subject.recipe
    name = TESTED_ON.get(recipe.data, recipe.data)
    split = _data(name, root, recipe.image_size, recipe.split_seed).test
    return split if images is None else split.take(images)


@lru_cache(maxsize=4)
def _run(folder: Path) -> Run:
    return load_run(folder)


def _network(run: Run, subject: Subject) -> adversarial_sets.Network:
    return adversarial_sets.Network(str(subject), run.classifier, run.id)
