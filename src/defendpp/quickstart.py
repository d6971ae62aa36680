"""The main job in one call: train five networks on real digits, attack them all, and show who resists what."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from defendpp import threats
from defendpp.data import load
from defendpp.progress import Progress
from defendpp.recipe import Recipe
from defendpp.run_evaluation import evaluate_runs
from defendpp.runs import Run, load_run, train

UNDEFENDED = Recipe(
    data="mnist-5k", width=16, epochs=7, learning_rate=0.2, batch_size=64, clip_norm=1.0, keep="last",
    scale="quickstart",
)  # fmt: skip
"""ResNet-18 of width 16 on 3,500 digits. Many small steps, which noise needs; chosen on validation images."""

NOISE = 0.5
"""Standard deviation of the noise, in pixel units."""

NETWORKS = {
    "no defence": UNDEFENDED,
    "no defence, another seed": replace(UNDEFENDED, seed=1),
    "Defend++": replace(UNDEFENDED, seed=1, defence="defend"),
    f"noise {NOISE}": replace(UNDEFENDED, seed=1, noise=NOISE),
    f"noise {NOISE} + consistency": replace(UNDEFENDED, seed=1, noise=NOISE, consistency=10.0),
}
"""All but the first, on which transferred images are made, begin with other weights than it."""
EPSILON = 0.2
"""The L∞ budget of the paper for MNIST, in pixel units."""


def train_networks(folder: Path, *, accelerator: str = "auto", progress: bool = True) -> list[Run]:
    """Train the networks into `folder`/runs; those that are there are read."""
    data = load(UNDEFENDED.data)
    runs = []
    for number, (name, recipe) in enumerate(NETWORKS.items(), 1):
        place = folder / "runs" / str(number)
        try:
            run = load_run(place)
        except FileNotFoundError:
            run = train(recipe, data, place, name=name, accelerator=accelerator, progress=progress)
        if (run.name, run.recipe) != (name, recipe):
            raise ValueError(f"{place} holds a network of another version of the quickstart: choose another folder")
        runs.append(run)
    return runs


def attack_networks(
    runs: list[Run], folder: Path, *, images: int = 200, device: str | None = None, progress: Progress | None = None
) -> pd.DataFrame:
    """Attack them all white-box, and with images made on the first; records and pictures go to `folder`."""
    chosen = [
        threats.fgsm(EPSILON),
        threats.bim(EPSILON, steps=40),
        threats.cascade(EPSILON),
        threats.ddn(steps=50),
    ]
    # The curve needs to know whether an image falls and no more, so what has fallen is left in peace.
    curve = [threats.pgd(epsilon, steps=40, loss="margin", stop_early=True) for epsilon in (0.1, EPSILON, 0.3)]
    data = load(UNDEFENDED.data)
    return evaluate_runs(
        runs,
        [*chosen, *curve],
        data.test.take(images),
        folder,
        data=data.name,
        source=runs[0],
        transferred=chosen,
        shown=threats.bim(EPSILON, steps=40),
        checked_on=10,  # more would take as long as the attacks
        device=device,
        progress=progress,
    )
