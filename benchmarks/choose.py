"""Choose how the robust networks are trained: candidates on validation images, under a validation attack.

    python benchmarks/choose.py mnist     # hours on two cores; what the record holds is not done again

Test images are never looked at here, and no figure of these is a result: the network that is chosen is trained
again and attacked by more. The attack is PGD, 60 steps on the margin, which is a fifth as dear as the cascade and lets
a few points more stand. Weights go to --runs; one seed each, so that differences of two points mean nothing.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from common import RESULTS, write
from torch import nn

from defendpp import attacks, robustness
from defendpp.adversarial_sets import predictions
from defendpp.data import Images, load
from defendpp.intervals import accuracy
from defendpp.recipe import Recipe
from defendpp.reproduce import EXECUTION
from defendpp.runs import load_run, train

IMAGES = 500


def candidates(data: str) -> dict[str, Recipe]:
    """By a name; the first is the plainest."""
    loud = robustness.recipe("loud", data, "resnet18", "cpu", 1)
    steady = robustness.recipe("steady", data, "resnet18", "cpu", 1)
    decoder = robustness.recipe("loud, decoder", data, "resnet18", "cpu", 1)
    levels = (0.3, 0.4, 0.5, 0.6, 0.7) if data == "mnist" else (0.12, 0.25)
    made = {f"noise {level:g}": replace(loud, noise=level) for level in levels}
    weights = (5.0, 10.0, 20.0, 60.0) if data == "mnist" else (5.0, 10.0, 20.0)
    made |= {f"noise {steady.noise:g} + consistency {each:g}": replace(steady, consistency=each) for each in weights}
    if data == "cifar10":
        made |= {f"noise {level:g} + consistency 10": replace(steady, noise=level) for level in (0.18, 0.25)}
    else:
        made |= {
            "noise 0.5 + consistency 20 in batches of 128": replace(steady, consistency=20.0, batch_size=128),
            "noise 0.5 + consistency 20 in batches of 32": replace(steady, consistency=20.0, batch_size=32),
            "noise 0.5 + consistency 20, twice as long": replace(steady, consistency=20.0, epochs=2 * steady.epochs),
            "noise 0.4 + consistency 20": replace(steady, consistency=20.0, noise=0.4),
            "noise 0.6 + consistency 20": replace(steady, consistency=20.0, noise=0.6),
            "half the noise's variance coarse": replace(loud, coarse_noise=0.5),
            "noise + gradient penalty 0.1": replace(loud, gradient_penalty=0.1),
            "noise + curvature 1": replace(loud, curvature=1.0, curvature_step=4.0),
            "noise + decoder": decoder,
            "noise + decoder + bottleneck 1": replace(decoder, bottleneck=1.0),
        }
    return made


def measure(model: nn.Module, split: Images, data: str) -> dict[str, list[float]]:
    """Accuracy with its interval on clean images and under PGD at every budget of the tables."""
    images, labels = split.batch(torch.arange(len(split)))
    right = {"clean": predictions(model, images) == labels}
    fast = attacks.prepare(model, images[:8])
    for name, (norm, epsilon) in robustness.budgets(data).items():
        made = attacks.pgd(fast, images, labels, epsilon=epsilon, norm=norm, steps=60, loss="margin", stop_early=True)
        right[name] = ~made.success
    found = {name: accuracy(each.numpy()) for name, each in right.items()}
    return {name: [each.value, each.low, each.high] for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["mnist", "cifar10"])
    parser.add_argument("--only", nargs="*", help="names of candidates")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs", "choice"))
    arguments = parser.parse_args()
    record = RESULTS.parent / "choice" / f"{arguments.data}.json"
    made = json.loads(record.read_text()) if record.exists() else {}
    known = candidates(arguments.data)
    if unknown := set(arguments.only or []) - set(known):
        parser.error(f"no candidate is called {', '.join(unknown)}, only {', '.join(known)}")
    loaded = load(arguments.data, root=arguments.data_root)
    split = loaded.validation.take(IMAGES)
    for name, recipe in known.items():
        if recipe.hash in made or (arguments.only and name not in arguments.only):
            continue
        folder = arguments.runs / recipe.hash
        try:
            run = load_run(folder)
        except FileNotFoundError:
            run = train(recipe, loaded, folder, name=name, execution=EXECUTION[arguments.data])
        shown = measure(run.classifier, split, arguments.data)
        made[recipe.hash] = {"name": name, "n": IMAGES, "seconds": run.result.seconds, "accuracy": shown}
        write(made, record)
        print(name, {threat: f"{100 * each[0]:.1f}" for threat, each in shown.items()}, flush=True)


if __name__ == "__main__":
    main()
