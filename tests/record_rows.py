"""Records of one run, made up: `run` of any kind, `rows` so that every number of a report can be counted by hand."""

import json
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from defendpp import records

N = 40
BUDGETS = {"linf": 0.2, "l2": 1.0}


def run(network: str, knowledge: str, source: str, norm: str, epsilon: float, **columns: Any) -> pd.DataFrame:
    """With what all runs have; on clean images there is no source and no norm."""
    is_clean = knowledge == "clean"
    made = {
        "network": network,
        "network_id": f"id of {network}",
        "data": "digits",
        "split": "test",
        "norm": "" if is_clean else norm,
        "epsilon": float(epsilon),
        "knowledge": knowledge,
        "source": "" if is_clean else source,
        "source_id": "" if is_clean else f"id of {source}",
        "correct": columns["prediction"] == columns["label"],
        "scale": "cpu",
        **columns,
    }
    return pd.DataFrame(made).reindex(columns=records.SCHEMA.names)


def rows(
    network: str,
    attack: str,
    kept: int,
    *,
    epsilon: float = nan,
    norm: str = "linf",
    source: str | None = None,
    distance: float = 0.0,
) -> pd.DataFrame:
    """One run on 40 images; the first `kept` are right under the attack, all of them when clean."""
    image = np.arange(N)
    is_clean = attack == "none"
    knowledge = "clean" if is_clean else "white-box" if source is None else "transfer"
    return run(
        network,
        knowledge,
        source or network,
        norm,
        epsilon,
        image=image,
        label=image % 10,
        attack=attack,
        settings=json.dumps({"steps": 7} if np.isnan(epsilon) else {"epsilon": epsilon, "step_size": epsilon / 4}),
        clean_prediction=image % 10,
        prediction=np.where(image < kept, image % 10, (image + 1) % 10),
        success=np.full(N, not is_clean),
        l2=distance * (image + 1) / N,
        linf=np.zeros(N),
        queries=9,
        seed=3,
    )
