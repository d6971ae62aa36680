"""The figures of the paper, drawn from stored arrays (`figure_data`) and curves (`records`) in seconds; no torch.

Each function returns a matplotlib figure, which `save` writes; nothing of pyplot's state is touched. What was measured
(data, network, protocol, source, n) is said in the `title` that the caller gives.
"""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from defendpp.files import write_whole
from defendpp.records import attack_name
from defendpp.report import COLOURS, MARKERS, STYLES

Arrays = Mapping[str, NDArray[Any]]

BIN = 1 / 40
"""Width of the bins of figure 8; 1 is an edge."""
FAINT = "#555555"
REPORTED = "{}, as the paper reports"


def figure2(arrays_by_name: Mapping[str, Arrays], *, title: str = "") -> Figure:
    """Low-pass images, their frequency maps, the Laplacian pyramid, its frequency maps: a row each.

    `arrays_by_name` maps the name of each image to its `figure_data.frequencies`; it has a column per scale. All maps
    share one colour scale, the bands of one image one gray scale around 0. ValueError where there is no image, or where
    it has no levels or not as many of one kind as of another.
    """
    if not arrays_by_name:
        raise ValueError("figure 2 needs at least one image, but got none")
    images = {name: _levels(name, arrays) for name, arrays in arrays_by_name.items()}
    columns = sum(len(levels["low_pass"]) for levels in images.values())
    maps = [each for levels in images.values() for kind in levels if kind.endswith("map") for each in levels[kind]]
    low, high = min(float(each.min()) for each in maps), max(float(each.max()) for each in maps)
    figure, grid = _grid(4, columns, title, extra=0.5)
    start = 0
    for name, levels in images.items():
        last = len(levels["low_pass"]) - 1
        strongest = max((float(np.abs(band).max()) for band in levels["pyramid"][:-1]), default=0) or 1.0
        for m in range(last + 1):
            image, image_map, band, band_map = (levels[kind][m] for kind in levels)
            column = grid[:, start + m]
            _show(column[0], np.clip(image, 0, 1), f"$I^{m}$, {image.shape[-2]}×{image.shape[-1]}")
            drawn = _show(column[1], image_map, f"DCT of $I^{m}$", cmap="magma", vmin=low, vmax=high)
            is_band = m < last
            gray = f"$P^{m}$, ±{strongest:.2g}" if is_band else f"$I^{m}$"
            _show(column[2], 0.5 + band / (2 * strongest) if is_band else np.clip(band, 0, 1), gray)
            _show(column[3], band_map, f"DCT of ${'P' if is_band else 'I'}^{m}$", cmap="magma", vmin=low, vmax=high)
        grid[0, start].set_title(_plain(name), loc="left")
        start += last + 1
    for axes, label in zip(grid[:, 0], ("low-pass", "frequencies", "pyramid", "frequencies"), strict=True):
        axes.set_ylabel(label)
    figure.colorbar(drawn, ax=grid[[1, 3]].ravel().tolist(), shrink=0.6, label="$\\log_{10}$ |DCT|")
    return figure


def figure5(arrays: Arrays, *, title: str = "", classes: Sequence[str] = ()) -> Figure:
    """A row per image, a column per attack: the class predicted, whether it is right, and the distances in pixel units.

    `arrays` is `figure_data.examples`; `classes` are the names of the classes, by default their numbers. ValueError for
    arrays that are missing or of the wrong shape.
    """
    clean, adversarial = (_array(arrays, key) for key in ("clean", "adversarial"))
    shape = (len(_array(arrays, "attack")), len(clean))
    for key in ("adversarial", "prediction", "l2", "linf"):
        if _array(arrays, key).shape[:2] != shape:
            raise ValueError(f"{key} must be of {shape[0]} attacks on {shape[1]} images, not of {arrays[key].shape}")
    figure, grid = _grid(shape[1], shape[0] + 1, title, extra=0.55)

    def verdict(predicted: int, label: int) -> str:
        return f"{_plain(classes[predicted]) if classes else predicted} {'✓' if predicted == label else '✗'}"

    for i, label in enumerate(_array(arrays, "label").tolist()):
        _show(grid[i, 0], clean[i], verdict(int(_array(arrays, "clean_prediction")[i]), label))
        for j in range(shape[0]):
            distances = f"L2 {arrays['l2'][j, i]:.2f}, L∞ {arrays['linf'][j, i]:.2f}"
            _show(grid[i, j + 1], adversarial[j, i], f"{verdict(int(arrays['prediction'][j, i]), label)}\n{distances}")
    for axes, name in zip(grid[0], ("Clean", *arrays["attack"].tolist()), strict=True):
        attack, *budget = name.split()
        axes.set_title(_plain(" ".join([attack_name(attack), *budget])))
    return figure


def figure6(
    transfer: Mapping[str, pd.DataFrame],
    white_box: Mapping[str, pd.DataFrame],
    *,
    source: str,
    reported: Mapping[str, pd.DataFrame] | None = None,
    chance: float = 0.1,
    title: str = "",
) -> Figure:
    """Accuracy against the budget of FGSM, with 95 % intervals: images made on `source`, and on each network itself.

    Curves, by network, are frames of columns budget, value, low, high, n as `records.security_curve` has them, in
    pixel units and in shares. A name has one look in both panels. `reported` are points (budget, value) of the paper,
    drawn in both panels because the paper does not say its protocol. chance: the accuracy of a guess. From budget 0.5
    on every image can be made plain gray, so that accuracy above chance there says that one step overshoots, not that
    the network resists (Carlini et al. 2019, "On evaluating adversarial robustness").

    ValueError where both panels are empty, or a curve is, lacks a column, or is no share inside its interval.
    """
    panels = {
        f"Transfer: made on “{source}”": transfer,
        "White-box: made on each network itself": white_box,
    }
    names = list(dict.fromkeys([*white_box, *transfer, *(reported or {})]))
    if not transfer and not white_box:
        raise ValueError("figure 6 needs at least one curve, but both panels are empty")
    for name, curve in [*transfer.items(), *white_box.items()]:
        _check_curve(name, curve, {"budget", "value", "low", "high", "n"})
    for name, points in (reported or {}).items():
        _check_curve(name, points, {"budget", "value"})
    figure = Figure(figsize=(9.0, 4.4), layout="constrained", facecolor="white")
    _entitle(figure, title)
    for axes, (heading, curves) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        sizes = sorted({n for curve in curves.values() for n in curve["n"].tolist()})
        n = " to ".join(dict.fromkeys(f"{size:,}" for size in sizes[:1] + sizes[-1:]))
        axes.set_title(_plain(f"{heading}\nn = {n}" if curves else f"{heading}\nnot measured"))
        _draw_curves(axes, curves, reported or {}, names)
        axes.axvline(0.5, color=FAINT, lw=1, ls=(0, (1, 2)), zorder=0)
        note = "from here on every image\ncan be made plain gray\n(Carlini et al. 2019)"
        axes.text(0.51, 101, note, va="top", fontsize="x-small", color=FAINT)
        axes.axhline(100 * chance, color=FAINT, lw=1, zorder=0)
        axes.text(1.01, 100 * chance, "chance", ha="right", va="bottom", fontsize="x-small", color=FAINT)
        axes.set(xlabel="FGSM ε (L∞), in pixel units of [0, 1]", xlim=(-0.02, 1.02), ylim=(-2, 102))
        _open(axes)
    figure.axes[0].set_ylabel("accuracy, %")
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    labels = [label for label in map(_plain, [*names, *map(REPORTED.format, names)]) if label in lines]
    shown = [lines[label] for label in labels]
    figure.legend(shown, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def figure7(arrays: Arrays, *, title: str = "") -> Figure:
    """Clean images, what the auto-encoder makes of them, adversarial images, what it makes of these: a row each.

    `arrays` is `figure_data.reconstructions`. ValueError for arrays that are missing or differ in shape.
    """
    rows = {
        "clean": "clean",
        "clean_reconstruction": "rebuilt",
        "adversarial": "adversarial",
        "adversarial_reconstruction": "rebuilt",
    }
    shape = _array(arrays, "clean").shape
    figure, grid = _grid(4, shape[0], title)
    for line, (key, label) in zip(grid, rows.items(), strict=True):
        if _array(arrays, key).shape != shape:
            raise ValueError(f"{key} must be of the shape of clean, {shape}, not {arrays[key].shape}")
        for axes, picture in zip(line, arrays[key], strict=True):
            _show(axes, picture)
        line[0].set_ylabel(label)
    return figure


def figure8(removals: Mapping[str, Arrays], *, title: str = "") -> Figure:
    """Histogram of R = D_rc / D_ra of each network, in % of the images that the attack changed.

    `removals` are `figure_data.removal` by name. The last bin holds everything from 2 on. The legend says how many
    images have R < 1, and for how many the reconstruction is nearer to the clean image than the attacked one was,
    D_rc < distance, which is the stricter question. ValueError where there is no network, an array is missing or of
    another length, or the attack changed no image.
    """
    if not removals:
        raise ValueError("figure 8 needs at least one network, but got none")
    figure = Figure(figsize=(5.6, 4.6), layout="constrained", facecolor="white")
    _entitle(figure, title)
    axes = figure.add_subplot()
    edges = BIN * np.arange(round(2 / BIN) + 1)
    for i, (name, arrays) in enumerate(removals.items()):
        ratio, to_clean, distance = (_array(arrays, key) for key in ("R", "D_rc", "distance"))
        if not ratio.shape == to_clean.shape == distance.shape == (ratio.size,):
            raise ValueError(
                f"{name!r}: R, D_rc and distance must be of as many images each, not {ratio.shape}, {to_clean.shape} "
                f"and {distance.shape}"
            )
        changed = distance > 0
        n = int(changed.sum())
        if n == 0:
            raise ValueError(f"{name!r}: the attack changed none of {len(ratio)} images, so there is nothing to remove")
        share = 100 * np.histogram(np.clip(ratio[changed], 0, 2), edges)[0] / n
        below, nearer = (100 * float(np.mean(each[changed])) for each in (ratio < 1, to_clean < distance))
        label = f"{_plain(name)}: R < 1 for {below:.1f} %, $D_{{rc}}$ < distance for {nearer:.1f} %, n = {n:,}"
        label += f" of {len(ratio):,}" if n < len(ratio) else ""
        look = _look(i)
        axes.stairs(share, edges, color=(look["color"], 0.15), fill=True)
        axes.stairs(share, edges, color=look["color"], linestyle=look["linestyle"], lw=1.5, label=label)
    axes.axvline(1, color=FAINT, lw=1, ls=(0, (1, 2)))
    axes.set(xlabel="R = $D_{rc}$ / $D_{ra}$ (last bin: 2 and beyond)", ylabel="images, %", xlim=(0, 2))
    _open(axes)
    figure.legend(loc="outside lower center", frameon=False, fontsize="small")
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as SVG or PNG, by the ending of `path`, whole or not at all; the same figure gives the same bytes.

    Its layout is fixed from then on. ValueError for another ending.
    """
    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in ("svg", "png"):
        raise ValueError(f"a figure is saved as .svg or .png, not as {path.name!r}")
    undated: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type") if ending == "svg" else ("Software",))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # a second layout would start from the first, and end a little elsewhere
    with matplotlib.rc_context({"svg.hashsalt": "defendpp"}):
        write_whole(path, partial(figure.savefig, format=ending, dpi=150, metadata=undated))


def _levels(name: str, arrays: Arrays) -> dict[str, list[NDArray[Any]]]:
    """The levels of each kind, from the largest, in the order of the rows of figure 2."""
    kinds = ("low_pass", "low_pass_map", "pyramid", "pyramid_map")
    found = {kind: next(m for m in count() if f"{kind}_{m}" not in arrays) for kind in kinds}
    levels = {kind: [arrays[f"{kind}_{m}"] for m in range(number)] for kind, number in found.items()}
    if 0 in found.values() or len(set(found.values())) > 1:
        told = ", ".join(f"{number} of {kind}" for kind, number in found.items())
        raise ValueError(f"{name!r}: figure 2 needs as many levels of each kind, at least 1, not {told}")
    return levels


def _array(arrays: Arrays, key: str) -> NDArray[Any]:
    if key not in arrays:
        raise ValueError(f"the arrays have no {key!r}, only {', '.join(map(repr, arrays)) or 'nothing'}")
    return arrays[key]


def _check_curve(name: str, curve: pd.DataFrame, needed: set[str]) -> None:
    missing = needed - set(curve.columns)
    if missing or curve.empty:
        problem = f"has no {min(missing)!r}" if missing else "is empty"
        raise ValueError(f"the curve of {name!r} {problem}: it needs {', '.join(sorted(needed))}")
    rising: list[Any] = [0, *(curve[column] for column in ("low", "value", "high") if column in needed), 1]
    if not all(np.all(below <= above) for below, above in pairwise(rising)):
        raise ValueError(f"the curve of {name!r} must have 0 <= low <= value <= high <= 1, shares and not per cent")


def _draw_curves(
    axes: Axes, curves: Mapping[str, pd.DataFrame], reported: Mapping[str, pd.DataFrame], names: list[str]
) -> None:
    for name, curve in curves.items():
        look = _look(names.index(name))
        low, value, high = (100 * curve[column] for column in ("low", "value", "high"))
        axes.fill_between(curve["budget"], low, high, color=look["color"], alpha=0.15, lw=0)
        axes.plot(curve["budget"], value, **look, markersize=5, label=_plain(name))
    for name, points in reported.items():
        look = _look(names.index(name)) | {"linestyle": "none", "markerfacecolor": "none", "markersize": 9}
        axes.plot(points["budget"], 100 * points["value"], **look, label=_plain(REPORTED.format(name)))


def _grid(rows: int, columns: int, title: str, extra: float = 0.0) -> tuple[Figure, NDArray[Any]]:
    """Empty axes for pictures; `extra` inches of height a row for the text below them."""
    if not rows or not columns:
        raise ValueError(f"a figure of pictures needs at least one, not {rows} rows of {columns}")
    figure = Figure(
        figsize=(1.0 + 1.25 * columns, 0.4 + (1.2 + extra / 2) * rows), layout="constrained", facecolor="white"
    )
    _entitle(figure, title)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(
    axes: Axes, picture: NDArray[Any], below: str = "", *, cmap: str = "gray", vmin: float = 0, vmax: float = 1
) -> Any:
    """Draw (channel, height, width) or (height, width), uint8 or float in [vmin, vmax], with a text below."""
    pixels = picture / 255 if picture.dtype == np.uint8 else picture.astype(float)
    pixels = np.moveaxis(pixels, 0, -1) if len(pixels) == 3 == pixels.ndim else pixels.reshape(pixels.shape[-2:])
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(below, fontsize="small")
    return axes.imshow(pixels, cmap=cmap, vmin=vmin, vmax=vmax, interpolation="nearest")


def _look(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": STYLES[i % len(STYLES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


def _open(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _entitle(figure: Figure, title: str) -> None:
    """The title in as many lines as the figure's width asks for, at about nine letters an inch."""
    figure.suptitle(_plain(textwrap.fill(title, max(20, int(9 * figure.get_figwidth())))))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a dollar sign would begin a formula
