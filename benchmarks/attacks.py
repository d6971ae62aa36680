"""Time attacks as multiples of steps x gradient unit, beside Foolbox; write records for docs/performance.md.

    python benchmarks/attacks.py                    # on an idle machine, with `pip install -e '.[test]'`

The gradient unit is the time of one plain eager PyTorch forward and input-gradient pass over the same batch in eval
mode. Every contender gets the same network, images and number of steps. One round measures everything once, in an order
of its own; the figures are the median and the range over the rounds of ratios taken within a round, because the speed
of a shared machine changes from minute to minute.
"""

import argparse
import json
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defendpp import attacks
from defendpp.data import load
from defendpp.files import write_whole
from defendpp.recipe import Recipe
from defendpp.runs import load_run, train

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "attacks.json"
EPSILON, STEPS = 0.2, 40

Attack = Callable[[], tuple[Tensor, int]]
"""Runs one attack; the adversarial images, and the gradient passes that it is charged with."""


def network(folder: Path, noise: float) -> nn.Module:
    """ResNet-18 of width 16 on the embedded digits, undefended or trained on noise."""
    recipe = Recipe(width=16, epochs=7, learning_rate=0.2, batch_size=64, clip_norm=1.0, noise=noise)
    place = folder / recipe.hash
    if not (place / "classifier.safetensors").exists():
        train(recipe, load(recipe.data), place, accelerator="cpu")
    return load_run(place).classifier


def contenders(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Attack]:
    """Each attack by our engine on the model as it is and prepared, and by Foolbox."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox: Any = import_module("foolbox")
        fb: Any = import_module("foolbox.attacks")

    prepared = attacks.prepare(model, images[:8])
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")

    def ours(target: nn.Module, attack: Callable[..., attacks.AttackResult], steps: int) -> Attack:
        return lambda: (attack(target, images, labels).images, steps)

    def foolboxs(attack: Any, epsilon: float | None, steps: int) -> Attack:
        return lambda: (attack(theirs, images, labels, epsilons=epsilon)[1], steps)

    bim = partial(attacks.bim, epsilon=EPSILON, step_size=EPSILON / 10, steps=STEPS)
    pgd = partial(attacks.pgd, epsilon=EPSILON, step_size=EPSILON / 10, steps=STEPS)
    first = partial(pgd, stop_early=True)
    cw = partial(attacks.carlini_wagner, search_steps=5, iterations=20, learning_rate=0.15, initial_constant=1.0)
    ddn = partial(attacks.ddn, steps=100, levels=None)
    chosen: dict[str, Attack] = {}
    for where, target in (("eager", model), ("prepared", prepared)):
        chosen |= {
            f"BIM | defendpp, {where}": ours(target, bim, STEPS),
            f"PGD | defendpp, {where}": ours(target, pgd, STEPS),
            f"PGD, first success | defendpp, {where}": ours(target, first, STEPS),
            f"C&W 5x20 | defendpp, {where}": ours(target, cw, 100),
            f"DDN 100 | defendpp, {where}": ours(target, ddn, 100),
        }
    linf = {"abs_stepsize": EPSILON / 10, "steps": STEPS}
    return chosen | {
        "BIM | Foolbox": foolboxs(fb.LinfBasicIterativeAttack(**linf, random_start=False), EPSILON, STEPS),
        "PGD | Foolbox": foolboxs(fb.LinfProjectedGradientDescentAttack(**linf), EPSILON, STEPS),
        "C&W 5x20 | Foolbox": foolboxs(
            fb.L2CarliniWagnerAttack(
                binary_search_steps=5, steps=20, stepsize=0.15, initial_const=1.0, abort_early=False
            ),
            None,
            100,
        ),
        "DDN 100 | Foolbox": foolboxs(fb.DDNAttack(steps=100), None, 100),
    }


def unit(model: nn.Module, images: Tensor, labels: Tensor, passes: int = 5) -> float:
    """Seconds of one forward and input-gradient pass."""
    started = time.perf_counter()
    for _ in range(passes):
        variable = images.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(variable), labels, reduction="sum")
        torch.autograd.grad(loss, variable)
    return (time.perf_counter() - started) / passes


def measure(model: nn.Module, images: Tensor, labels: Tensor, rounds: int) -> list[dict[str, Any]]:
    """One row a contender: ratios of time to steps x unit, share of images flipped, median L2 of the flipped."""
    chosen = contenders(model, images, labels)
    unit(model, images, labels)
    ratios: dict[str, list[float]] = {name: [] for name in chosen}
    found: dict[str, Tensor] = {}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(list(chosen), len(chosen)):
            before = unit(model, images, labels)
            started = time.perf_counter()
            found[name], steps = chosen[name]()
            seconds = time.perf_counter() - started
            around = (before + unit(model, images, labels)) / 2
            ratios[name].append(seconds / (steps * around))
            print(f"round {number + 1}/{rounds}  {name:38s} {ratios[name][-1]:.2f}", flush=True)
    rows = []
    for name, values in ratios.items():
        attack, library = name.split(" | ")
        with torch.no_grad():
            flipped = model(found[name]).argmax(1) != labels
        distance = (found[name] - images).flatten(1).norm(dim=1)[flipped]
        rows.append(
            {
                "attack": attack,
                "library": library,
                "ratios": [round(value, 4) for value in values],
                "median": statistics.median(values),
                "flipped": flipped.float().mean().item(),
                "median L2": distance.median().item() if len(distance) else None,
            }
        )
    return rows


def write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--networks", type=Path, default=Path("runs/benchmark"), help="folder for the two networks")
    arguments = parser.parse_args()
    data = load("mnist-5k")
    images, labels = data.test.take(arguments.images).batch(range(arguments.images))
    made: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "images": arguments.images,
        "rounds": arguments.rounds,
        "networks": {},
    }
    for name, noise in (("undefended", 0.0), ("noise 0.5", 0.5)):
        made["networks"][name] = measure(network(arguments.networks, noise), images, labels, arguments.rounds)
        write_whole(RESULTS, partial(write_json, made))
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
