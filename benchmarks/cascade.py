"""Robust accuracy and time of `cascade` beside AutoAttack standard, image by image; write a record.

    python benchmarks/cascade.py     # on an idle machine, with `pip install -e '.[benchmarks]'`; hours on two cores

Both attack the same test images of the same network, whose weights are frozen, as one batch. The cascade works on the
prepared network, preparing it included, and is timed before and after AutoAttack, which runs once. The gradient unit is
one forward and input-gradient pass of the plain network over all images. What is broken is judged by the plain network
on the images returned, within the budget. A case that the record holds is not measured again.
"""

import argparse
import dataclasses
import json
import logging
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from common import NETWORKS, RESULTS, machine, trained, write
from torch import Tensor, nn

from defendpp import attacks
from defendpp.data import load
from defendpp.intervals import accuracy

CASES = {
    "undefended": ("undefended", 0.2),
    "noise 0.5": ("noise 0.5", 0.2),
    "adversarially trained": ("adversarially trained", 0.2),
    "adversarially trained, beyond its budget": ("adversarially trained", 0.25),
}
"""Network and L-infinity budget. Gradients say least just beyond the budget that a network was trained for."""


def cascade(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, seed: int) -> attacks.AttackResult:
    prepared = attacks.prepare(model, images[:8])
    return attacks.cascade(prepared, images, labels, epsilon=epsilon, generator=torch.Generator().manual_seed(seed))


def autoattack(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, seed: int) -> Tensor:
    """The images that AutoAttack standard makes; what it did not break comes back as it was."""
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    library: Any = import_module("pyautoattack")
    attack = library.AutoAttack(model, norm="Linf", eps=epsilon, seed=seed, version="standard")
    made: Tensor = attack.run_standard_evaluation(images, labels, batch_size=len(images))[0]
    return made


def unit(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    variable = images.clone().requires_grad_()
    torch.autograd.grad(nn.functional.cross_entropy(model(variable), labels, reduction="sum"), variable)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    made = work()
    return made, time.perf_counter() - started


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor, made: Tensor, epsilon: float) -> Tensor:
    """Which images are still classified right; those beyond the budget or outside [0, 1] count as not broken."""
    allowed = ((made - images).abs() <= epsilon + 1e-6).flatten(1).all(1) & (made.clamp(0, 1) == made).flatten(1).all(1)
    broken: Tensor = allowed & (model(made).argmax(1) != labels)
    return ~broken


def measure(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, seed: int) -> dict[str, Any]:
    """Accuracies with their intervals, seconds, the ratio of times, and where the two disagree."""
    unit(model, images, labels)
    before, first = timed(lambda: cascade(model, images, labels, epsilon, seed))
    units = statistics.median(timed(lambda: unit(model, images, labels))[1] for _ in range(5))
    theirs, long = timed(lambda: autoattack(model, images, labels, epsilon, seed))
    _, second = timed(lambda: cascade(model, images, labels, epsilon, seed))
    ours_right = correct(model, images, labels, before.images, epsilon)
    theirs_right = correct(model, images, labels, theirs, epsilon)
    short = (first + second) / 2
    return {
        "epsilon": epsilon,
        "clean": dataclasses.asdict(accuracy(correct(model, images, labels, images, epsilon).numpy())),
        "cascade": dataclasses.asdict(accuracy(ours_right.numpy())),
        "AutoAttack": dataclasses.asdict(accuracy(theirs_right.numpy())),
        "broken by the cascade only": int((~ours_right & theirs_right).sum()),
        "broken by AutoAttack only": int((ours_right & ~theirs_right).sum()),
        "seconds": {"cascade": [round(first, 2), round(second, 2)], "AutoAttack": round(long, 2)},
        "ratio": round(short / long, 4),
        "gradient units": round(short / units, 2),
        "passes per image": round(before.queries.double().mean().item(), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--networks", type=Path, default=NETWORKS, help="folder for the networks")
    parser.add_argument("--output", type=Path, default=RESULTS / "cascade.json")
    parser.add_argument("--again", action="store_true", help="measure anew, and replace the record")
    arguments = parser.parse_args()
    data = load("mnist-5k")
    count = min(arguments.images, len(data.test))
    images, labels = data.test.take(count).batch(range(count))
    about = {**machine(), "images": count, "seed": arguments.seed}
    path: Path = arguments.output
    made: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not arguments.again else {}
    for key, value in about.items() if made else ():
        if made.get(key) != value:
            raise ValueError(f"{path} was made with {key} {made.get(key)}, not {value}: --again measures all anew")
    made = {**about, "networks": made.get("networks", {})}
    for case in arguments.cases:
        if case in made["networks"]:
            print(f"{case}: is in {path}; --again measures it anew")
            continue
        name, epsilon = CASES[case]
        model = trained(name, arguments.networks).classifier.requires_grad_(False)
        made["networks"][case] = measure(model, images, labels, epsilon, arguments.seed)
        print(case, json.dumps(made["networks"][case], indent=1), flush=True)
        write(made, path)


if __name__ == "__main__":
    main()
