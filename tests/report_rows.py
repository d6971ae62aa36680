"""Records of one run, made up so that every number of a report can be counted by hand."""

import json
from math import nan

import numpy as np
import pandas as pd

N = 40
BUDGETS = {"linf": 0.2, "l2": 1.0}


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
    made_on = "" if is_clean else source or network
    prediction = np.where(image < kept, image % 10, (image + 1) % 10)
    return pd.DataFrame(
        {
            "network": network,
            "network_id": f"id of {network}",
            "data": "digits",
            "split": "test",
            "image": image,
            "label": image % 10,
            "attack": attack,
            "norm": "" if is_clean else norm,
            "epsilon": float(epsilon),
            "settings": json.dumps(
                {"steps": 7} if np.isnan(epsilon) else {"epsilon": epsilon, "step_size": epsilon / 4}
            ),
            "knowledge": "clean" if is_clean else "white-box" if source is None else "transfer",
            "source": made_on,
            "source_id": f"id of {made_on}" if made_on else "",
            "clean_prediction": image % 10,
            "prediction": prediction,
            "correct": prediction == image % 10,
            "success": np.full(N, not is_clean),
            "l2": distance * (image + 1) / N,
            "linf": np.zeros(N),
            "queries": 9,
            "seed": 3,
            "scale": "cpu",
        }
    )
