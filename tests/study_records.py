"""Records of a study, written by hand."""

import numpy as np
import pandas as pd

from defendpp import records
from defendpp.study import Measurement, Place, measurements


def first(k: int, n: int = 100) -> list[bool]:
    """The first k of n images are right."""
    return [True] * k + [False] * (n - k)


def of_role(role: str, attack: str, *, white_box: bool) -> list[Measurement]:
    """What table 2 measures of a role under an attack, by seed."""
    found = {
        each.target.seed: each
        for each in measurements("table2", "cpu")
        if each.target.role == role and each.attack and each.attack.name == attack and each.is_white_box == white_box
    }
    return [found[seed] for seed in sorted(found)]


def store(
    job: Measurement,
    correct: list[bool],
    place: Place,
    l2: float | list[float] = 1.5,
    weights: str = "",
    beginning: int = 0,
) -> None:
    """Whether each image stayed right, from number `beginning` on; `weights` is what the networks were trained to."""
    n = len(correct)
    attack = job.attack
    frame = pd.DataFrame(
        {
            "network": str(job.target),
            "network_id": weights or job.target.recipe.hash,
            "data": "mnist",
            "split": "test",
            "image": beginning + np.arange(n)[::-1],
            "label": 0,
            "attack": attack.name if attack else "none",
            "norm": attack.norm if attack else "",
            "epsilon": np.nan if attack is None or attack.epsilon is None else attack.epsilon,
            "settings": "{}",
            "knowledge": "clean" if attack is None else "white-box" if job.is_white_box else "transfer",
            "source": "",
            "source_id": job.source.recipe.hash if attack and not (weights and job.is_white_box) else weights,
            "clean_prediction": 0,
            "prediction": [0 if right else 1 for right in correct],
            "correct": correct,
            "success": [not right for right in correct],
            "l2": l2,
            "linf": 0.1,
            "queries": 1,
            "seed": 0,
            "scale": "cpu",
        }
    ).astype({"image": "int64"})
    records.write(frame, job.file(place))
