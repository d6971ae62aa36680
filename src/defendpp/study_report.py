"""What a study came to, written beside its records: tables in Markdown, figures as pictures. No network is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from defendpp import figures, paper, tables
from defendpp.files import write_whole
from defendpp.paper import FIGURES, Scale
from defendpp.recipe import Recipe
from defendpp.study import Picture, Place, figure6

if TYPE_CHECKING:
    from rich.console import RenderableType

NETWORKS = {"source": "no defence", "none": "no defence, another seed", "ours": "Defend++"}


def differences(recipe: Recipe, plain: Recipe) -> str:
    """In which fields a recipe differs from another, for people; runs that it starts from are called the source."""
    fields = recipe.beside(plain)
    fields |= {name: "the source" for name in ("start", "attacked_run") if fields.get(name)}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items())


def whole(recipe: Recipe) -> str:
    """What determines the training of an undefended network, for people."""
    width = "" if "/" in recipe.network else f"width {recipe.width}, "
    if recipe.network.startswith("resnet"):
        width += f"a first block that {'keeps' if recipe.stem == 'full' else 'halves'} the resolution, "
    if recipe.network == "vgg16":
        width += f"dropout {recipe.dropout:g}, "
    start = "from published weights, " * recipe.pretrained
    return (
        f"{width}{start}{recipe.epochs} epochs of batches of {recipe.batch_size}, {recipe.optimizer} with learning "
        f"rate {recipe.learning_rate:g} ({recipe.schedule}), momentum {recipe.momentum:g} and weight decay "
        f"{recipe.weight_decay:g}, augmentation: {recipe.augment}, keeping the {recipe.keep} epoch"
    )


def write_table(name: str, scale: Scale, place: Place) -> "RenderableType":
    """Write a table, as far as it was measured, to `name`.md in the results; returns it for a terminal."""
    made = tables.printed(name, scale, place)
    text = f"# {name.replace('table', 'Table ')}. {made.title}\n\n{tables.markdown(made)}"
    write_whole(place.results / f"{name}.md", lambda path: path.write_text(text))
    return tables.terminal(made)


def write_figure(name: str, scale: Scale, place: Place) -> str:
    """Write a figure to `name`.png in the results; returns where it is, or that it was not measured yet."""
    arrays = Picture(name, scale).file(place)
    if name != "figure6" and not arrays.exists():
        return f"{name}: {FIGURES[name]}: not measured yet"
    title = f"{name.replace('figure', 'Figure ')}. {FIGURES[name]}"
    if name == "figure6":
        curves = _curves(scale, place)
        if not any(curves.values()):
            return f"{name}: {FIGURES[name]}: not measured yet"
        drawn = figures.figure6(
            curves["transfer"],
            curves["white-box"],
            source=NETWORKS["source"],
            title=f"{title} (MNIST, “{scale}” scale, training seed 1{_unfinished(curves)})",
        )
    else:
        found = _stored(arrays)
        if name == "figure2":
            drawn = figures.figure2(found, title=title)
        elif name == "figure5":
            drawn = figures.figure5(found[""], title=f"{title}, on an undefended ResNet-18 of “{scale}” scale")
        elif name == "figure7":
            drawn = figures.figure7(found[""], title=f"{title}: FGSM 0.2 on an undefended network, “{scale}” scale")
        else:
            drawn = figures.figure8(
                found, title=f"{name.replace('figure', 'Figure ')}. FGSM 0.2 on MNIST, “{scale}” scale"
            )
    path = place.results / f"{name}.png"
    figures.save(drawn, path)
    return f"{name}: {FIGURES[name]}: {path}"


def _unfinished(curves: dict[str, dict[str, pd.DataFrame]]) -> str:
    """That points of figure 6 are missing, where they are."""
    points = sum(len(curve) for panel in curves.values() for curve in panel.values())
    wanted = 2 * len(NETWORKS) * (1 + len(paper.FIGURE6_EPSILONS))
    return "" if points == wanted else f"; {points} of {wanted} points measured so far"


def _stored(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of a figure by the name before the last space of their keys, as `reproduce` stored them."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            name, _, kind = key.rpartition(" ")
            found.setdefault(name, {})[kind] = arrays[key]
    return found


def _curves(scale: Scale, place: Place) -> dict[str, dict[str, pd.DataFrame]]:
    """The curves of figure 6 by protocol and network, as far as they were measured."""
    curves: dict[str, dict[str, pd.DataFrame]] = {"transfer": {}, "white-box": {}}
    drawn = figure6(scale)
    tables.check_weights((each for series in drawn.values() for each in series), place)
    for (protocol, role), series in drawn.items():
        points = []
        for budget, each in zip((0.0, *paper.FIGURE6_EPSILONS), series, strict=True):
            measured = tables.right([each], place)
            if measured is not None:
                found = tables.estimate([measured])
                points.append((budget, found.value, found.low, found.high, found.n))
        if points:
            curves[protocol][NETWORKS[role]] = pd.DataFrame(points, columns=["budget", "value", "low", "high", "n"])
    return curves
