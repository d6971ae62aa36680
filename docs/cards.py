"""Publish trained networks with the package: copy their weights, and write their model cards from the records.

python docs/cards.py            # the cards alone
python docs/cards.py --weights study/networks
"""

import argparse
import json
from itertools import product
from pathlib import Path

from defendpp import paper, published, robustness, schedule, study, tables
from defendpp.intervals import Accuracy, MeanAccuracy
from defendpp.progress import spoken
from defendpp.recipe import Recipe
from defendpp.study import Place, Subject, Training

ROOT = Path(__file__).resolve().parent.parent
PLACE = Place(ROOT / "results" / "study", ROOT / "study")
SOURCE_SEED = {data: paper.SOURCE_SEEDS[seed] for data, seed in paper.ONE_SEED.items()}
NETWORKS = {
    "mnist-robust": Subject("steady", "mnist", "resnet18", 1, "cpu"),
    "mnist-robust-longer": Subject("steady, longer", "mnist", "resnet18", 1, "cpu"),
    "mnist-robust-wide": Subject("steady, width 32", "mnist", "resnet18", 1, "cpu"),
    "cifar10-robust": Subject("steady", "cifar10", "resnet18", 1, "cpu"),
    "mnist-undefended": Subject("source", "mnist", "resnet18", SOURCE_SEED["mnist"], "cpu"),
    "mnist-undefended-2": Subject("none", "mnist", "resnet18", paper.ONE_SEED["mnist"], "cpu"),
    "mnist-undefended-3": Subject("source", "mnist", "resnet18", paper.SOURCE_SEEDS[3], "cpu"),
    "mnist-defend": Subject("ours", "mnist", "resnet18", paper.ONE_SEED["mnist"], "cpu"),
    "cifar10-undefended": Subject("source", "cifar10", "resnet18", SOURCE_SEED["cifar10"], "cpu"),
    "cifar10-undefended-2": Subject("none", "cifar10", "resnet18", paper.ONE_SEED["cifar10"], "cpu"),
    "cifar10-defend": Subject("ours", "cifar10", "resnet18", paper.ONE_SEED["cifar10"], "cpu"),
}
IS = {
    "steady": "that resists an attacker who knows its weights, trained on clean images only, without a decoder and "
    "without adversarial images",
    "source": "without a defence, to make images on that are shown to other networks",
    "none": "without a defence, of another training seed than the one that transferred images are made on: what it "
    "keeps of these is the worth of not being the network attacked, and the least that a defence must beat",
    "ours": "trained with the paper's decoder and objective, at the scale of the study, to be compared",
}
"""What each is, by its role."""
RESIST = ("steady", "steady, longer", "steady, width 32")
"""The roles of those that are meant to be used; the others are there to be compared with."""
ABOUT = {
    "mnist": "handwritten digits, 28x28 gray pixels in [0, 1], white on black; the training images of MNIST",
    "cifar10": "colour photographs of ten classes, 32x32 pixels in [0, 1]; the training images of CIFAR-10, from a "
    "copy whose images had been re-encoded as JPEG",
}


def card(name: str, place: Place = PLACE) -> str:
    """README.md of a published network."""
    subject = NETWORKS[name]
    recipe, data = subject.recipe, subject.data
    result = json.loads(Training(subject).file(place).read_text())
    changed = recipe.beside(Recipe())
    options = " ".join(f"--{field.replace('_', '-')} {value}" for field, value in changed.items())
    lines = [
        f"# {name}",
        "<!-- Written by docs/cards.py from results; do not edit. -->",
        f"A ResNet-18 of width {recipe.width} {IS['steady' if subject.role in RESIST else subject.role]}.",
        "```python\nimport defendpp as dp\n\n"
        f'classifier = dp.load_run("{name}").classifier.eval()  # images in [0, 1] to logits\n```',
        f"- **Data**: {ABOUT[data]}; {result['training_images']:,} images to train on.\n"
        f"- **Classes**: {', '.join(result['classes'])}.\n"
        f"- **Recipe**: {_defence(recipe)}{recipe.epochs} epochs in batches of {recipe.batch_size}; training seed "
        f"{recipe.seed}. `defendpp train {options} --output RUN` trains such a one; it "
        f"took {spoken(schedule.seconds(Training(subject), place) or 0)} of one to two processor cores.\n"
        f"- **Weights**: {result['id']}, classifier.safetensors.",
        "## Figures",
        *_figures(subject, place),
        "## Limits",
        (
            f"Robust means: against changes of the pixels within these budgets, on images like those of {data}. It "
            "says nothing of other changes (rotations, other scanners, other cameras), nor of larger budgets, and "
            "robust accuracy under attacks is an upper bound: a better attack may find more. Certified accuracy is of "
            "this network smoothed by noise (`defendpp certify`), not of its single answer. One training seed."
        )
        if subject.role in RESIST
        else f"Not to be relied on where anybody may attack it; {data}-robust resists more. One training seed.",
    ]
    return "\n\n".join(lines) + "\n"


def _defence(recipe: Recipe) -> str:
    """What is done beside classifying clean images."""
    told = ""
    if recipe.noise:
        told += f"Gaussian noise of standard deviation {recipe.noise:g} on every image, "
    if recipe.consistency:
        told += f"and agreement of two noisy copies (weight {recipe.consistency:g}, Jeong and Shin 2020), "
    if recipe.defence == "defend":
        told += "an auto-encoder that shares the encoder, with low-pass images of several scales as its targets, "
    return told


def _figures(subject: Subject, place: Place) -> list[str]:
    """What was measured of this one network, by attacks with a budget and certificates."""
    found: dict[tuple[object, ...], tuple[str, Accuracy | MeanAccuracy]] = {}  # two tables may have the same
    names = [f"{kind}-{subject.data}" for kind in ("record", "robust", "width")]
    if subject.role not in RESIST:
        names = ["table2" if subject.data == "mnist" else "table3"]
    for table in map(study.TABLES.__getitem__, names):
        for row, column in product(table.rows, table.columns):
            for groups in study.cell(table, row, column, subject.scale):
                mine = next((group for group in groups.values() if group[0].target.recipe == subject.recipe), None)
                right = tables.right(mine, place, column.radius) if mine else None
                if mine and right is not None:
                    measured = (*(each.key for each in mine), column.radius)
                    found.setdefault(measured, (_title(mine[0], column, subject), tables.estimate([right])))
    lines = [f"| {title} | {tables.percent(each)} | {each.n:,} |" for title, each in found.values() if title]
    return [
        "Test images; 95 % intervals (Wilson); white-box unless it says otherwise; budgets and radii in pixel units; "
        "what the attacks are stands in the project's docs/robustness.md and docs/study.md.",
        "\n".join(["| | accuracy in % | n |", "|---|---:|---:|", *lines]),
    ]


def _name(subject: Subject) -> str:
    """What a network is called here, or in the study."""
    return next((name for name, each in NETWORKS.items() if each == subject), str(subject))


def _title(measured: study.Measurement, column: paper.Column, subject: Subject) -> str:
    """Of a line of the figures; empty for attacks of any size, whose accuracy says little."""
    attack = measured.attack
    if attack is None or column.radius is not None or column.name not in paper.attacks(subject.data):
        is_cascade = column.name.startswith(tuple(robustness.budgets(subject.data)))
        return f"Cascade, {column.name}" if is_cascade else column.name
    if attack.epsilon is None:
        return ""
    made_on = "" if measured.is_white_box else f", made on {_name(measured.source)}"
    return f"{column.name}, L∞ {attack.epsilon:g}{made_on}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of the study's trained networks")
    arguments = parser.parse_args()
    for each in NETWORKS:
        if arguments.weights and (arguments.weights / NETWORKS[each].recipe.hash / "classifier.safetensors").exists():
            published.copy(arguments.weights / NETWORKS[each].recipe.hash, published.FOLDER / each, each)
        if each in published.names():
            (published.FOLDER / each / "README.md").write_text(card(each))
