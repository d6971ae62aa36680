"""Trained runs -> all that a report needs: their records, pictures, and what the checks say of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from defendpp import checks, evaluation, records, threats
from defendpp.adaptive import adapted, stand_ins
from defendpp.adversarial_sets import Network, device_of, network, predictions
from defendpp.attacks import prepare
from defendpp.data import Images, digest
from defendpp.files import short_hash, write_arrays, write_whole
from defendpp.networks import home
from defendpp.objective import Defend
from defendpp.progress import Progress
from defendpp.runs import Run
from defendpp.threats import Attack

PICTURES = 8
"""Images that a report shows of each network."""


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
    files = evaluation.measure(
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
        "settings": np.array(evaluation.settings_of(attack)),
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
    wanted = {"attack": str(attack), "settings": evaluation.settings_of(attack)}
    with np.load(path) as there:
        same = all(name in there and str(there[name]) == text for name, text in wanted.items())
        return same and np.array_equal(there["clean"], split.batch(range(min(PICTURES, len(split))))[0].numpy())
