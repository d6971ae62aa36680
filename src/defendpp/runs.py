"""A run: a folder with what came of training a recipe.

It holds `run.json` (name, recipe, data, result), `classifier.safetensors` (the classifier alone), for Defend++
`auto_encoder.safetensors` (what inference never needs), and `logs/`. While the training is unfinished `checkpoints/` is
there too, and `run.json` has no result.
"""

import dataclasses
import json
import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from defendpp import networks, published, threats
from defendpp.data import Data, Images, crop_and_flip, digest
from defendpp.data.images import Augment, InMemory
from defendpp.execution import Execution
from defendpp.files import ENDING, write_whole
from defendpp.objective import (
    Defend,
    Objective,
    Together,
    adversarial_cross_entropy,
    cross_entropy,
    defend,
    penalty,
)
from defendpp.purifier import Binarise, ComDefend, Purified, purification
from defendpp.recipe import Recipe
from defendpp.stability import curvature_penalty, gradient_penalty
from defendpp.training import (
    Fitted,
    LearningRate,
    Phase,
    alternating,
    check_accelerator,
    fit,
    is_main_process,
    joint,
    one_cycle,
    step_decay,
)


@dataclass(frozen=True)
class Run:
    """A trained network, read from its folder, in eval mode on the CPU."""

    name: str
    """What tables call it."""
    recipe: Recipe
    classifier: nn.Module
    objective: Defend | None
    """With the decoder, where it was trained with one."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(channel, height, width)"""
    result: Fitted
    id: str
    """Hash of the classifier's weights."""
    data_digest: str
    """Of the test images that it was not trained on."""


def build_classifier(
    recipe: Recipe, classes: int, image_shape: tuple[int, int, int], start: Path | None = None
) -> nn.Module:
    """The recipe's classifier with its initial weights, which depend on the seed alone, or those of the run `start`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed would reseed graphics cards too
        classifier = networks.build(
            recipe.network,
            classes=classes,
            channels=image_shape[0],
            image_size=image_shape[1],
            width=recipe.width,
            stem=recipe.stem,
            dropout=recipe.dropout,
            pretrained=recipe.pretrained and start is None,
        )
        if start is not None:
            networks.load_weights(classifier, start / "classifier.safetensors")
        if recipe.defence == "comdefend":
            purifier = ComDefend(image_shape[0], width=recipe.width / 64, mean_pixel=recipe.mean_pixel)
            return Purified(purifier, classifier.requires_grad_(False))
    if recipe.defence == "binarise":
        return Purified(Binarise(), classifier)
    return classifier


def build_objective(recipe: Recipe, classifier: nn.Module, image_shape: tuple[int, int, int]) -> Objective:
    """The recipe's objective for `classifier`, with a decoder of fresh weights where it needs one."""
    penalties = _penalties(recipe)
    base = _defence(recipe, classifier, image_shape)
    return Together(base, *penalties) if penalties else base


def _penalties(recipe: Recipe) -> list[Objective]:
    """Objectives beside the defence's own."""
    made: list[Objective] = []
    if recipe.gradient_penalty:
        made.append(partial(penalty, of=gradient_penalty, weight=recipe.gradient_penalty))
    if recipe.curvature:
        of = partial(curvature_penalty, step=recipe.curvature_step)
        made.append(partial(penalty, of=of, weight=recipe.curvature))
    return made


def _defence(recipe: Recipe, classifier: nn.Module, image_shape: tuple[int, int, int]) -> Objective:
    if recipe.defence in ("none", "binarise"):
        plain = partial(cross_entropy, noise=recipe.noise, clip=recipe.clip_noise)
        if not (recipe.coarse_noise or recipe.consistency):
            return plain
        return partial(plain, coarse=recipe.coarse_noise, agreement=recipe.consistency)
    if recipe.defence == "adversarial":
        return cross_entropy if recipe.attacked_run is not None else _adversarial(recipe, image_shape)
    if recipe.defence == "comdefend":
        return purification
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed + 1)  # not the classifier's own random numbers again
        return defend(
            classifier,
            image_shape,
            noise=recipe.noise,
            clip_noise=recipe.clip_noise,
            coarse=recipe.coarse_noise,
            agreement=recipe.consistency,
            bottleneck=recipe.bottleneck,
            decoder=recipe.decoder,
            targets=recipe.targets,
            scales=recipe.scales,
            full_scale_weight=recipe.full_scale_weight,
            scale_weight=recipe.scale_weight,
            shared_blocks=recipe.shared_blocks,
            block_names=recipe.blocks or None,
        )


def train(
    recipe: Recipe,
    data: Data,
    folder: Path | str,
    *,
    name: str | None = None,
    execution: Execution | Literal["auto"] = "auto",
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: bool = True,
) -> Run:
    """Train `recipe` on `data` into the run folder `folder`, or go on where an interrupted call left off.

    execution, accelerator, devices, nodes: as for `fit`. Each of several processes returns the run; one writes it.

    A finished run of this recipe, data and name is read, and not trained again.

    Raises `FileExistsError` where the folder already holds another run, or something else; nothing in it is changed
    then. Raises what `Recipe.check`, the parts' builders and `fit` raise.
    """
    recipe.check()
    folder = Path(folder)
    start, attacked_run = (_beside(folder, recipe, option) for option in ("start", "attacked_run"))
    if len(data.train) < 2 or len(data.validation) < 1:
        raise ValueError(
            f"{data.name} has {len(data.train)} training and {len(data.validation)} validation images, too few to train"
        )
    image_shape = (data.channels, data.image_size, data.image_size)
    images = data.train
    if recipe.training_images is not None:
        images = images.take(recipe.training_images, recipe.split_seed)
    test_digest = digest(data.test)
    heading = {
        "name": name or str(recipe),
        "recipe": dataclasses.asdict(recipe),
        "recipe_hash": recipe.hash,
        "classes": list(data.classes),
        "image_shape": list(image_shape),
        "training_images": len(images),
        "data_digest": test_digest,
    }
    if _is_there(folder, heading):
        if progress and is_main_process():
            print(f"{folder} holds this run already: it is not trained again", file=sys.stderr)
        return load_run(folder)
    check_accelerator(accelerator)
    classifier = build_classifier(recipe, len(data.classes), image_shape, start)
    objective = build_objective(recipe, classifier, image_shape)
    if attacked_run is not None:
        source = build_classifier(
            dataclasses.replace(recipe, pretrained=False), len(data.classes), image_shape, attacked_run
        )
        images = _with_attacked(images, source.to(place_of(accelerator)), _attack(recipe, image_shape))
    _write_json(folder / "run.json", heading)
    if recipe.epochs == 0:
        accuracy = _accuracy(classifier.to(place_of(accelerator)), data.validation)
        fitted = Fitted(accuracy, len(data.validation), 0, 0, 0.0, "eager")
    else:
        fitted = fit(
            classifier,
            objective,
            images,
            data.validation,
            phases=_phases(recipe),
            learning_rate=_learning_rate(recipe),
            folder=folder,
            batch_size=recipe.batch_size,
            optimizer=recipe.optimizer,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            keep=recipe.keep,
            augment=_augment(recipe),
            seed=recipe.seed,
            execution=execution,
            accelerator=accelerator,
            devices=devices,
            nodes=nodes,
            progress=progress,
        )
    hardened = _hardened(objective)
    hardened = hardened and hardened.cpu()
    classifier.cpu()
    if is_main_process():
        if hardened is not None:
            about = {"recipe": recipe.hash}
            networks.save(hardened.auto_encoder, folder / "auto_encoder.safetensors", about, overwrite=True)
        about = {"recipe": recipe.hash, "network": recipe.network}
        networks.save(classifier, folder / "classifier.safetensors", about, overwrite=True)
        _write_json(folder / "run.json", {**heading, "result": dataclasses.asdict(fitted)})
        shutil.rmtree(folder / "checkpoints", ignore_errors=recipe.epochs == 0)  # only after the result is on disk
    shown = name or str(recipe)
    id_ = networks.fingerprint(classifier)
    return Run(shown, recipe, classifier, hardened, data.classes, image_shape, fitted, id_, test_digest)


def load_run(folder: Path | str) -> Run:
    """Read a finished run, by its folder or by the name of a published one (`published`).

    Raises `FileNotFoundError` or `ValueError` where the folder holds none, or a damaged one.
    """
    folder = published.place(folder)
    heading = _read_json(folder / "run.json")
    if "result" not in heading:
        raise FileNotFoundError(f"the training in {folder} is not finished: run its `defendpp train` command again")
    try:
        fields = {**heading["recipe"], "blocks": tuple(heading["recipe"]["blocks"])}
        recipe = Recipe(**fields)
        channels, height, width = heading["image_shape"]
        data_digest = heading["data_digest"]
        classes, name = tuple(heading["classes"]), heading["name"]
        result = Fitted(**{"execution": "eager", **heading["result"]})  # the only way there was at first
    except (KeyError, TypeError) as problem:
        raise ValueError(f"{folder / 'run.json'} was not written by this version of defendpp: {problem}") from problem
    shape = (channels, height, width)
    classifier = build_classifier(dataclasses.replace(recipe, pretrained=False), len(classes), shape)
    objective = build_objective(recipe, classifier, shape)
    networks.load_weights(classifier, folder / "classifier.safetensors")
    hardened = _hardened(objective)
    if hardened:
        networks.load_weights(hardened.auto_encoder, folder / "auto_encoder.safetensors")
        hardened.eval()
    classifier.eval()
    return Run(
        name, recipe, classifier, hardened, classes, shape, result, networks.fingerprint(classifier), data_digest
    )


def _hardened(objective: Objective) -> Defend | None:
    """The part with the decoder, where there is one."""
    parts = objective.objectives if isinstance(objective, Together) else [objective]
    return next((each for each in parts if isinstance(each, Defend)), None)


def _is_there(folder: Path, heading: dict[str, Any]) -> bool:
    """Whether `folder` holds this run, finished; a `FileExistsError` where it holds what must not be touched."""
    if not folder.exists() or (folder.is_dir() and all(path.suffix == ENDING for path in folder.iterdir())):
        return False
    if not (folder / "run.json").is_file():
        raise FileExistsError(f"{folder} exists and is no run folder: choose another place for the run")
    present = _read_json(folder / "run.json")
    wanted = json.loads(json.dumps(heading))
    # what determines the training: neither its name, nor fields that an earlier version did not have
    present["recipe"] = {**json.loads(json.dumps(dataclasses.asdict(Recipe()))), **present["recipe"]}
    is_finished = "result" in present
    passed_over = {"recipe_hash", "recipe"} if is_finished else {"recipe_hash", "recipe", "name"}
    there, here = {**present, **present["recipe"]}, {**wanted, **wanted["recipe"]}
    other = next((name for name in reversed(here) if name not in passed_over and there.get(name) != here[name]), None)
    if other and (is_finished or (folder / "checkpoints" / "last.ckpt").exists()):
        raise FileExistsError(
            f"{folder} holds {'a finished' if is_finished else 'an unfinished'} run of another recipe ({other} is "
            f"{there.get(other)}, not {here[other]}): choose another folder, or remove it"
        )
    return is_finished


def _adversarial(recipe: Recipe, image_shape: tuple[int, int, int]) -> Objective:
    attack = _attack(recipe, image_shape)
    if recipe.attack != "ddn":
        return partial(adversarial_cross_entropy, attack=attack, clean_weight=recipe.clean_weight)
    usual = 2.4 if image_shape[0] == 1 else 1.0  # Rony et al. 2019, section 5
    longest = usual if recipe.attack_epsilon is None else recipe.attack_epsilon
    return partial(adversarial_cross_entropy, attack=attack, clean_weight=recipe.clean_weight, max_norm=longest)


def _attack(recipe: Recipe, image_shape: tuple[int, int, int]) -> threats.Attack:
    """What adversarial training attacks with."""
    if recipe.attack == "ddn":
        return threats.ddn(steps=recipe.attack_steps or 20)
    epsilon = threats.usual_epsilon(image_shape) if recipe.attack_epsilon is None else recipe.attack_epsilon
    return threats.fgsm(epsilon) if recipe.attack == "fgsm" else threats.pgd(epsilon, steps=recipe.attack_steps or 7)


def _with_attacked(images: Images, source: nn.Module, attack: threats.Attack, batch_size: int = 500) -> Images:
    """The images, and after them what `attack` makes of each on `source`, all in memory with 8 bits a pixel."""
    source.eval()
    generator = torch.Generator().manual_seed(0)
    random = {"generator": generator} if attack.is_random else {}
    clean, attacked = [], []
    place = networks.home(source)
    for positions in torch.arange(len(images)).split(batch_size):
        pixels, labels = (each.to(place) for each in images.batch(positions))
        clean.append((255 * pixels).round().byte().cpu())
        attacked.append((255 * attack.run(source, pixels, labels, **random).images).round().byte().cpu())
    rows = torch.arange(2 * len(images))
    labels, index = images.labels.repeat(2), images.index.repeat(2)
    return Images(InMemory(torch.cat([*clean, *attacked])), rows, labels, index)


def place_of(accelerator: str) -> torch.device:
    """Where what comes before a training is computed: on this process's graphics card where it will train on one."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _beside(folder: Path, recipe: Recipe, option: str) -> Path | None:
    """The folder of the run that an option names, by a path, or by its name where it lies beside this one."""
    other: str | None = getattr(recipe, option)
    if other is None:
        return None
    for place in (Path(other), folder.parent / other, published.place(other)):
        if (place / "classifier.safetensors").is_file():
            return place
    raise FileNotFoundError(f"{option} {other} is no folder of a finished run: no classifier.safetensors in it")


@torch.inference_mode()
def _accuracy(classifier: nn.Module, images: Images) -> float:
    correct = 0
    for positions in torch.arange(len(images)).split(100):
        pixels, labels = (each.to(networks.home(classifier)) for each in images.batch(positions))
        correct += int((classifier.eval()(pixels).argmax(1) == labels).sum())
    return correct / len(images)


def _phases(recipe: Recipe) -> list[Phase]:
    if recipe.learning == "joint":
        return joint(recipe.epochs)
    return alternating(
        recipe.cycles,
        auto_encoder_epochs=recipe.auto_encoder_epochs,
        classifier_epochs=recipe.classifier_epochs,
        joint_epochs=recipe.epochs,
    )


def _learning_rate(recipe: Recipe) -> LearningRate:
    if recipe.schedule == "step":
        return step_decay(recipe.learning_rate, every=recipe.decay_every)
    return one_cycle(recipe.learning_rate, epochs=recipe.passes)


def _augment(recipe: Recipe) -> Augment | None:
    return None if recipe.augment == "none" else partial(crop_and_flip, flip=recipe.augment == "crop-flip")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        names = ", ".join(published.names())
        raise FileNotFoundError(
            f"there is no run in {path.parent}: no {path.name} in it{names and ', and published networks are ' + names}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is damaged: {problem}") from problem
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, lambda partial: partial.write_text(json.dumps(content, indent=2) + "\n"))
