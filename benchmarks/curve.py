"""Time one `minimal_pgd` beside PGD once per budget, and compare their security curves; write a record.

    python benchmarks/curve.py       # on an idle machine, with `pip install -e .`

Both attack the same prepared network and the same images as one batch. One round measures everything once, in an order
of its own; the ratios of times are taken within a round. Curves are accuracies in percent at the budgets; a difference
below 0 means that the one run broke more images.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import NETWORKS, RESULTS, machine, trained, write
from torch import Tensor, nn

from defendpp import attacks
from defendpp.data import load

BUDGETS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
STEPS = 40  # of PGD at each budget
ONE_RUN_STEPS = 60
ONE_RUN = "minimal_pgd"


def contenders(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Callable[[], list[float]]]:
    """Each way to the curve: runs everything, returns the accuracy in percent at each budget."""
    prepared = attacks.prepare(model, images[:8])

    def one_run() -> list[float]:
        result = attacks.minimal_pgd(prepared, images, labels, steps=ONE_RUN_STEPS)
        distance = (result.images - images).abs().flatten(1).amax(1).where(result.success, torch.inf)
        return [100 * (distance > budget).double().mean().item() for budget in BUDGETS]

    def run_per_budget(stop_early: bool) -> list[float]:
        attack = partial(attacks.pgd, prepared, images, labels, steps=STEPS, stop_early=stop_early)
        return [100 * (~attack(epsilon=budget).success).double().mean().item() for budget in BUDGETS]

    return {
        ONE_RUN: one_run,
        "pgd per budget": partial(run_per_budget, stop_early=False),
        "pgd per budget, first success": partial(run_per_budget, stop_early=True),
    }


def measure(model: nn.Module, images: Tensor, labels: Tensor, rounds: int) -> list[dict[str, Any]]:
    """A row for each way: accuracies, those of the one run less these, and the one run's time as a part of its time."""
    chosen = contenders(model, images, labels)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    curves: dict[str, list[float]] = {}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(list(chosen), len(chosen)):
            started = time.perf_counter()
            curves[name] = chosen[name]()
            seconds[name].append(time.perf_counter() - started)
            print(f"round {number + 1}/{rounds}  {name:30s} {seconds[name][-1]:.1f} s", flush=True)
    rows = []
    for name in chosen:
        ratios = [one / other for one, other in zip(seconds[ONE_RUN], seconds[name], strict=True)]
        lower = [one - other for one, other in zip(curves[ONE_RUN], curves[name], strict=True)]
        rows.append(
            {
                "attack": name,
                "accuracy": [round(value, 2) for value in curves[name]],
                "difference": [round(value, 2) for value in lower],
                "ratios": [round(value, 4) for value in ratios],
                "median": round(statistics.median(ratios), 4),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--networks", type=Path, default=NETWORKS, help="folder for the networks")
    parser.add_argument("--results", type=Path, default=RESULTS / "curve.json")
    arguments = parser.parse_args()
    data = load("mnist-5k")
    images, labels = data.test.take(arguments.images).batch(range(arguments.images))
    made: dict[str, Any] = {
        **machine(),
        "images": arguments.images,
        "rounds": arguments.rounds,
        "budgets": BUDGETS,
        "steps": {ONE_RUN: ONE_RUN_STEPS, "pgd": STEPS},
        "networks": {},
    }
    for name in ("undefended", "noise 0.5"):
        model = trained(name, arguments.networks).classifier
        made["networks"][name] = measure(model, images, labels, arguments.rounds)
        write(made, arguments.results)


if __name__ == "__main__":
    main()
