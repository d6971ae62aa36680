"""Report: records to tables for the terminal and for Markdown, and to one HTML page that needs nothing but itself.

Every number is computed from the records; none is typed. A cell that was not measured is a dash, never a zero.
`budgets` maps a norm ("linf", "l2") to the budget the tables are about: fixed-budget attacks are then shown at that
budget only, beside the worst case over all attacks of the norm. `baseline` is the network that the others are compared
with (by default the first), `control` an undefended network of another seed, the row to beat under transfer.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import inf, isclose, isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from defendpp import doubts, intervals
from defendpp import records as rec
from defendpp.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

MISSING = "–"

Gallery = Mapping[str, NDArray[Any]]
"""Pictures of one network: float arrays in [0, 1] of shape (n, 1 or 3 channels, height, width), named `clean`,
`adversarial` and, where there is a decoder, `clean_reconstruction` and `adversarial_reconstruction`; integer arrays of
shape (n,) named `label`, `clean_prediction`, `prediction`; and `attack`, a text that says what made them, in
full in `settings`, which is not shown."""


@dataclass(frozen=True)
class Entry:
    """What a table shows for one network and one threat model."""

    value: str
    interval: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Block:
    """One table: networks under what an attacker of one kind of knowledge can do."""

    title: str
    note: str
    headings: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Entry]]]


def blocks(records: pd.DataFrame, budgets: Mapping[str, float] | None = None) -> list[Block]:
    """The tables of these records, white-box first, then one per source of transferred images."""
    summary = rec.summary(records, budgets)
    columns = cast("list[rec.Column]", summary.columns.tolist())
    kinds = dict.fromkeys((knowledge, source) for knowledge, source, *_ in columns if knowledge != "clean")
    return [_block(summary, knowledge, source, budgets or {}) for knowledge, source in kinds or {("clean", ""): None}]


def _block(summary: pd.DataFrame, knowledge: str, source: str, budgets: Mapping[str, float]) -> Block:
    def is_shown(column: rec.Column) -> bool:
        of_knowledge, of_source, attack, norm, epsilon = column
        stated = budgets.get(norm, epsilon)
        at_stated = (of_knowledge, of_source, attack, norm, stated) in summary.columns
        is_asked = isinf(epsilon) or attack in ("all", "smoothing") or not at_stated or isclose(epsilon, stated)
        return of_knowledge == "clean" or ((of_knowledge, of_source) == (knowledge, source) and is_asked)

    columns = [column for column in cast("list[rec.Column]", summary.columns.tolist()) if is_shown(column)]
    counts = {cell.n for column in columns for cell in summary[column] if isinstance(cell, intervals.Accuracy)}
    entries = {column: _entries(summary[column], column, len(counts) > 1) for column in columns}
    title = {
        "clean": "Clean images",
        "certificate": "Certified: the smoothed classifier",
        "white-box": "White-box: each network attacked through its own gradients",
        "gray-box": f"Gray-box: images made on “{source}”, its purifier unknown to the attack",
        "transfer": f"Transfer: images made on “{source}”, tested on the others",
    }[knowledge]
    note = "Accuracy in % with its 95 % Wilson interval"
    note += f", n = {counts.pop()} images." if len(counts) == 1 else ", n beside it."
    if any(isinf(column[4]) for column in columns):
        note += (
            " Median distance: what the attack needed on images that were right when clean, a failure counting as"
            " infinite; further is harder."
            if knowledge == "white-box"
            else " “Any size” attacks stop just across the boundary of their source, so another network undoes them;"
            " high numbers there mean little."
        )
    if knowledge == "certificate":
        note += (
            " Certified: the classifier smoothed by noise is right, and no change up to the radius moves its prediction"
            " (but for a small probability of error, see the settings)."
        )
    if any(column[2] == "all" for column in columns):
        note += (
            " Worst: right under every attack of the norm within the budget, transferred ones included, for networks"
            " that met all white-box ones."
        )
    note += f" Bold: the best of the column, and all whose interval reaches it. {MISSING}: not measured."
    return Block(
        title,
        note,
        [_heading(column) for column in columns],
        [
            (
                network,
                [Entry("source") if network == source and c[0] != "clean" else entries[c][network] for c in columns],
            )
            for network in summary.index
        ],
    )


def _heading(column: rec.Column) -> tuple[str, str]:
    knowledge, _, attack, norm, epsilon = column
    if attack == "none":
        return "Clean", ""
    name, unit = rec.attack_name(attack), rec.NORM_NAMES[norm]
    if knowledge == "certificate":
        return "certified", f"{unit} > {epsilon:g}"
    if isinf(epsilon):
        return name, f"median {unit}" if knowledge == "white-box" else "any size"
    return ("worst" if attack == "all" else name), f"{unit} ≤ {epsilon:g}"


def _entries(cells: "pd.Series[Any]", column: rec.Column, with_n: bool) -> dict[str, Entry]:
    source = column[1]
    measured = {str(network): cell for network, cell in cells.items() if cell is not None and network != source}
    value = {
        name: cell.median if isinstance(cell, intervals.Distance) else cell.value for name, cell in measured.items()
    }
    top = max(value.values(), default=0.0)
    best = {name for name, cell in measured.items() if cell.high >= top and top > 0}
    entries = {str(network): Entry(MISSING) for network in cells.index}
    for name, cell in measured.items():
        scale, digits = (1, 2) if isinstance(cell, intervals.Distance) else (100, 1)
        coarse = digits == 1 and cell.n < 1000  # the ends of so wide an interval mean nothing below a point
        places = (digits, digits - coarse, digits - coarse)
        shown, low, high = (
            f"{scale * x:.{places}f}" if x < inf else "∞"
            for x, places in zip((value[name], cell.low, cell.high), places, strict=True)
        )
        n = f" (n = {cell.n})" if with_n else ""
        entries[name] = Entry(shown, f"{low}–{high}{n}", name in best and len(best) < len(measured))
    return entries


def table(records: pd.DataFrame, budgets: Mapping[str, float] | None = None) -> "Table":
    """Who resists what, for a terminal of 80 columns: one table per kind of knowledge, stacked."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    stack = Table.grid()
    for block in blocks(records, budgets):
        inner = Table(
            title=Text(block.title, style="bold"),
            caption=Text(block.note),
            box=box.SIMPLE_HEAD,
            padding=0,
            title_justify="left",
            caption_justify="left",
        )
        inner.add_column("network", min_width=10)
        for name, detail in block.headings:
            inner.add_column(Text(f"{name}\n{detail}"), justify="right", no_wrap=True)
        for network, entries in block.rows:
            texts = [
                Text.assemble((entry.value, "bold" if entry.is_best else ""), "\n", (entry.interval, "dim"))
                for entry in entries
            ]
            inner.add_row(Text(network), *texts)
        stack.add_row(inner)
        stack.add_row("")
    return stack


def markdown(records: pd.DataFrame, budgets: Mapping[str, float] | None = None) -> str:
    """The same tables for a README."""

    def plain(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|&])", r"\\\1", text)

    parts = []
    for block in blocks(records, budgets):
        heads = ["network", *(f"{plain(name)} {detail}".strip() for name, detail in block.headings)]
        lines = [
            f"**{plain(block.title)}**",
            "",
            f"| {' | '.join(heads)} |",
            "|---" + "|---:" * len(block.headings) + "|",
        ]
        for network, entries in block.rows:
            shown = [f"**{e.value}**" if e.is_best else e.value for e in entries]
            cells = [
                f"{value} ({e.interval})" if e.interval else value for value, e in zip(shown, entries, strict=True)
            ]
            lines.append(f"| {' | '.join([plain(network), *cells])} |")
        parts.append("\n".join([*lines, "", plain(block.note)]))
    return "\n\n".join(parts) + "\n"


def headlines(
    records: pd.DataFrame,
    budgets: Mapping[str, float] | None = None,
    *,
    baseline: str | None = None,
    control: str | None = None,
) -> list[str]:
    """What the numbers say, in sentences: the strongest white-box attack of each norm, its cost, transfer, doubts."""
    networks = list(records["network"].unique())
    baseline = _known(baseline or networks[0], networks)
    sentences = []
    fixed = records[records["epsilon"].notna()]
    for norm in ("linf", "l2"):
        runs = fixed[(fixed["knowledge"] == "white-box") & (fixed["norm"] == norm)]
        if not runs.empty:
            epsilon = float((budgets or {}).get(norm, runs["epsilon"].max()))
            stated = runs[np.isclose(runs["epsilon"], epsilon)]
            attack = _strongest(stated if len(stated) else runs)
            sentences += _versus(records, networks, baseline, attack, norm, epsilon)
    minimal = records[(records["knowledge"] == "white-box") & records["epsilon"].isna()]
    minimal = minimal[minimal["clean_prediction"] == minimal["label"]]
    for unit, runs in minimal.groupby(minimal["norm"].map(rec.NORM_NAMES), sort=False):
        strongest = _strongest(runs)
        of_attack = runs[runs["attack"] == strongest].groupby("network", sort=False)
        medians = [f"{rec.median_distance(rows)} on “{network}”" for network, rows in of_attack]
        sentences.append(f"The median {unit} distance that {rec.attack_name(strongest)} needs is {', '.join(medians)}.")
    if control is not None:
        sentences += _transfer(fixed, networks, _known(control, networks))
    return sentences + doubts.in_records(records)


def _strongest(runs: pd.DataFrame) -> str:
    """The attack that did most, over all networks: left the fewest images right, or went the shortest way."""
    if runs["epsilon"].notna().all():
        left = runs.groupby("attack", sort=False)["correct"].mean()
        return "cascade" if left.get("cascade") == left.min() else str(left.idxmin())  # what is meant to be relied on
    distance = runs["l2"].where(runs["norm"] == "l2", runs["linf"]).where(runs["success"], inf)
    return str(distance.groupby(runs["attack"], sort=False).median().idxmin())


def _known(network: str, networks: list[str]) -> str:
    if network not in networks:
        raise ValueError(f"the records have no network {network!r}, only {', '.join(map(repr, networks))}")
    return network


def _compare(records: pd.DataFrame, a: str, b: str, **threat: Any) -> str | intervals.Difference:
    """a against b on the same images, or the reason why they cannot be compared."""
    try:
        pairs = rec.join(records, a, b, **threat)
    except ValueError as error:
        return str(error)
    return intervals.paired_difference(pairs["correct_a"].to_numpy(), pairs["correct_b"].to_numpy())


def _versus(
    records: pd.DataFrame, networks: list[str], baseline: str, attack: str, norm: str, epsilon: float
) -> list[str]:
    threat = {"attack": attack, "knowledge": "white-box", "epsilon": epsilon}
    runs = records[(records["attack"] == attack) & (records["knowledge"] == "white-box") & (records["norm"] == norm)]
    runs = runs[np.isclose(runs["epsilon"], epsilon)]
    kept = {
        str(name): intervals.accuracy(rows["correct"].to_numpy()) for name, rows in runs.groupby("network", sort=False)
    }
    under = f"Under white-box {rec.attack_name(attack)} at {rec.NORM_NAMES[norm]} ≤ {epsilon:g}"
    if baseline not in kept:
        return [f"{under}, “{baseline}” was not measured, so nothing can be compared with it."]
    sentences = [f"{under}, “{baseline}” keeps {kept[baseline]} of n = {kept[baseline].n} images."]
    for network in networks:
        if network != baseline and network in kept:
            gain = _compare(runs, network, baseline, **threat)
            sentences.append(f"“{network}” keeps {kept[network]}; against “{baseline}”: {gain}.")
    ranked = sorted((name for name in kept if name != baseline), key=lambda name: -kept[name].value)
    if len(ranked) > 1:
        sentences.append(
            f"The best of them, “{ranked[0]}”, against the next, “{ranked[1]}”: "
            f"{_compare(runs, ranked[0], ranked[1], **threat)}."
        )
    if ranked:
        cost = _compare(records, ranked[0], baseline, attack="none", knowledge="clean")
        sentences.append(f"On clean images, “{ranked[0]}” against “{baseline}”: {cost}.")
    return sentences


def _transfer(fixed: pd.DataFrame, networks: list[str], control: str) -> list[str]:
    """The control against the others, under the transferred attack that leaves the control the least."""
    tests = fixed[(fixed["knowledge"] == "transfer") & (fixed["network"] == control) & (fixed["source"] != control)]
    if tests.empty:
        return [f"“{control}” met no transferred attack, so what being another network is worth is not known."]
    runs = [rows for _, rows in tests.groupby(["source", "attack", "norm", "epsilon"], sort=False)]
    rows = min(runs, key=lambda run: float(run["correct"].mean()))
    source, attack, norm = (str(rows[name].iloc[0]) for name in ("source", "attack", "norm"))
    epsilon = float(rows["epsilon"].iloc[0])
    threat = {"attack": attack, "knowledge": "transfer", "epsilon": epsilon, "source": source}
    met = set(fixed.loc[(fixed["knowledge"] == "transfer") & (fixed["source"] == source), "network"])
    gains = [
        f"“{network}” {_compare(fixed, network, control, **threat)}"
        for network in networks
        if network in met - {control, source}
    ]
    return [
        f"Transferred {rec.attack_name(attack)} images ({rec.NORM_NAMES[norm]} ≤ {epsilon:g}, made on “{source}”) "
        f"leave “{control}”, which is another network but not defended, "
        f"{intervals.accuracy(rows['correct'].to_numpy())}" + (f"; against it: {'; '.join(gains)}." if gains else ".")
    ]


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")
"""Okabe and Ito's colours, told apart by the colour-blind; line styles and markers say the same again."""
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curves(records: pd.DataFrame, budgets: Mapping[str, float] | None = None) -> list[dict[str, str]]:
    """Security curves, one figure per white-box attack: `title`, `alt` text, and `image`, an SVG as a data URI.

    A fixed-budget attack has a curve if some network met it at two budgets or more; FGSM has none, since one step
    overshoots as the budget grows and measures nothing.
    """
    networks = list(records["network"].unique())
    white = records[records["knowledge"] == "white-box"]
    figures = []
    for (norm, attack), rows in white.groupby(["norm", "attack"], sort=False):
        is_minimal = bool(rows["epsilon"].isna().all())
        if attack == "fgsm" or (not is_minimal and rows["epsilon"].nunique() < 2):
            continue
        # A few images may be far off; the curve ends where 99 in 100 have fallen, so that the rest can be read.
        distances = rows.loc[rows["success"], str(norm)]
        grid = (
            np.linspace(0, float(distances.quantile(0.99)) if len(distances) else 1.0, 101).tolist()
            if is_minimal
            else None
        )
        found = {
            name: rec.security_curve(rows[rows["network"] == name], grid)
            for name in networks
            if (rows["network"] == name).any()
        }
        name, unit = rec.attack_name(str(attack)), rec.NORM_NAMES[str(norm)]
        budget = (budgets or {}).get(str(norm))
        at = float(rows["epsilon"].max()) if grid is None else grid[50]
        at = budget if budget is not None and (grid is None or budget <= grid[-1]) else at
        readings = [
            f"{network} {100 * np.interp(at, curve['budget'], curve['value']):.0f} %"
            for network, curve in found.items()
        ]
        title = f"White-box {name}: accuracy against the {unit} {'distance' if is_minimal else 'budget'}"
        alt = f"{title}. All curves fall as it grows. At {at:g}: {', '.join(readings)}."
        figure = _draw(found, networks, unit, every=10 if is_minimal else 1, budget=budget)
        figures.append({"title": title, "alt": alt, "image": _svg(figure, title)})
    return figures


def _draw(
    found: Mapping[str, pd.DataFrame], networks: list[str], unit: str, *, every: int, budget: float | None
) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.0), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for name, curve in found.items():
        i = networks.index(name)
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(curve["budget"], 100 * curve["low"], 100 * curve["high"], color=colour, alpha=0.15, lw=0)
        axes.plot(
            curve["budget"],
            100 * curve["value"],
            color=colour,
            linestyle=STYLES[i % len(STYLES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            markevery=every,
            label=name.replace("$", r"\$"),  # a dollar sign would begin a formula
        )
    if budget is not None:
        axes.axvline(budget, color="#555555", lw=1, ls=(0, (1, 2)), zorder=0)
    axes.set(xlabel=f"{unit}, in pixel units of [0, 1]", ylabel="accuracy, %", ylim=(-2, 102))
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def _svg(figure: "Figure", salt: str) -> str:
    import matplotlib

    stream = io.StringIO()
    undated: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": salt}):  # the same records give the same page, byte by byte
        figure.savefig(stream, format="svg", metadata=undated)
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue().encode()).decode()}"


def _png(pixels: UInt8[np.ndarray, "height width rgb"]) -> str:
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, pixels, format="png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def load_gallery(name: str, gallery: Gallery | str | Path) -> dict[str, NDArray[Any]]:
    """The pictures of a network (see `Gallery`), from arrays or an .npz of them; a ValueError says what is wrong."""
    if isinstance(gallery, str | Path):
        if not Path(gallery).is_file():
            raise FileNotFoundError(f"there is no gallery of {name!r} at {gallery}")
        with np.load(gallery, allow_pickle=False) as stored:
            gallery = dict(stored)
    pictures = ("clean", "clean_reconstruction", "adversarial", "adversarial_reconstruction")
    classes = ("label", "clean_prediction", "prediction")
    arrays = {key: np.asarray(array) for key, array in gallery.items()}
    for key in ("clean", "adversarial", *classes, "attack"):
        if key not in arrays:
            raise ValueError(f"the gallery of {name!r} has no {key!r}")
    shape = arrays["clean"].shape
    if len(shape) != 4 or shape[0] == 0 or shape[1] not in (1, 3):
        raise ValueError(f"{name!r}: clean pictures must be (n, 1 or 3, height, width) with n > 0, not {shape}")
    for key, array in arrays.items():
        if key in pictures:
            if array.shape != shape or array.dtype.kind != "f":
                raise ValueError(f"{name!r}: {key} must be float of shape {shape}, not {array.dtype} of {array.shape}")
            if not (array.min() >= 0 and array.max() <= 1):
                raise ValueError(f"{name!r}: {key} must be in [0, 1], but spans [{array.min():g}, {array.max():g}]")
        elif key in classes:
            if array.shape != shape[:1] or array.dtype.kind not in "iu":
                raise ValueError(
                    f"{name!r}: {key} must be {shape[0]} integers, not {array.dtype} of shape {array.shape}"
                )
        elif key not in ("attack", "settings"):
            raise ValueError(
                f"the gallery of {name!r} has {key!r}, which is none of {', '.join((*pictures, *classes))}"
            )
    return arrays


def _gallery(name: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """One network's rows of pictures, ready for the template."""
    from matplotlib import colormaps

    label, before, after = (arrays[key].tolist() for key in ("label", "clean_prediction", "prediction"))
    n = len(label)

    def colour(images: Float[np.ndarray, "n channel height width"]) -> list[str]:
        pixels = np.rint(255 * images).astype(np.uint8).transpose(0, 2, 3, 1)
        return [_png(np.broadcast_to(each, (*each.shape[:2], 3))) for each in pixels]

    def row(stage: str, uris: list[str], predictions: list[int] | None = None) -> dict[str, Any]:
        texts = (
            [""] * n
            if predictions is None
            else [f"{p} {'✓' if p == y else '✗'}" for p, y in zip(predictions, label, strict=True)]
        )
        alts = [
            f"{stage}, image {i + 1}, label {label[i]}{', predicted ' + texts[i][:-2] if texts[i] else ''}"
            for i in range(n)
        ]
        return {"stage": stage, "cells": list(zip(uris, alts, texts, strict=True))}

    change = (arrays["adversarial"].astype(float) - arrays["clean"]).mean(axis=1)
    scale = float(np.abs(change).max()) or 1.0
    diverging = np.rint(255 * colormaps["RdBu_r"](0.5 + change / (2 * scale))[..., :3]).astype(np.uint8)
    rows = [row("Clean", colour(arrays["clean"]), before)]
    if "clean_reconstruction" in arrays:
        rows.append(row("Clean, reconstructed", colour(arrays["clean_reconstruction"])))
    rows.append(row("Adversarial", colour(arrays["adversarial"]), after))
    if "adversarial_reconstruction" in arrays:
        rows.append(row("Adversarial, reconstructed", colour(arrays["adversarial_reconstruction"])))
    rows.append(row("Perturbation", [_png(each) for each in diverging]))
    attack, *settings = str(arrays["attack"]).split()
    attack = " ".join([rec.attack_name(attack), *settings])
    return {"network": name, "attack": attack, "labels": label, "rows": rows, "scale": f"{scale:.2g}"}


def measured(records: pd.DataFrame) -> list[list[str]]:
    """How it was measured, a row per attack: name, knowledge, budgets, settings, seeds, images, median queries."""
    attacks = records[records["attack"] != "none"]
    pairs = list(zip(attacks["settings"], attacks["epsilon"].fillna(0.0), strict=True))
    told = {pair: _settings(*pair) for pair in set(pairs)}
    attacks = attacks.assign(
        shown=[told[pair] for pair in pairs],
        source=attacks["source"].where(attacks["knowledge"].isin(rec.TRANSFERRED), ""),
    )
    lines = []
    for (knowledge, source, attack, norm, shown), rows in attacks.groupby(
        ["knowledge", "source", "attack", "norm", "shown"], sort=False
    ):
        epsilons = [f"{epsilon:g}" for epsilon in sorted(rows["epsilon"].dropna().unique())]
        counts = rows.groupby(["network", "epsilon"], dropna=False).size()
        lines.append(
            [
                rec.attack_name(str(attack)),
                f"{knowledge}, from “{source}”" if source else str(knowledge),
                f"{rec.NORM_NAMES[str(norm)]} ≤ {', '.join(epsilons)}"
                if epsilons
                else f"{rec.NORM_NAMES[str(norm)]}, smallest",
                str(shown) or MISSING,
                ", ".join(map(str, sorted(rows["seed"].unique()))),
                " to ".join(dict.fromkeys([str(counts.min()), str(counts.max())])),
                f"{rows['queries'].median():g}",
            ]
        )
    return lines


def _settings(settings: str, epsilon: float) -> str:
    """An attack's settings less its budget, and its step as a part of that, so that one line does for all budgets."""
    told = {key: str(value) for key, value in json.loads(settings).items() if key != "epsilon"}
    if "step_size" in told and epsilon > 0:
        told["step_size"] = f"{float(told['step_size']) / epsilon:.3g} × budget"
    return ", ".join(f"{key} {value}" for key, value in told.items())


def html(
    records: pd.DataFrame,
    gallery: Mapping[str, Gallery | str | Path] | None = None,
    *,
    title: str,
    notes: Mapping[str, str] | None = None,
    budgets: Mapping[str, float] | None = None,
    baseline: str | None = None,
    control: str | None = None,
    checks: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
    beside: Sequence[str] = (),
) -> str:
    """The whole report as one HTML page without any outside resource.

    `gallery` maps networks to their pictures (`Gallery`, or the path of an .npz); `notes` are facts, by name, about the
    measurement that records do not hold (command, versions, commit, hardware); `checks` are as for `believed`;
    `beside` are sentences to stand with those of `headlines`, such as `overlooked`'s. ValueError for what does not fit.
    """
    from jinja2 import Environment, StrictUndefined

    networks = list(records["network"].unique())
    pictures = {_known(name, networks): load_gallery(name, each) for name, each in (gallery or {}).items()}
    template = files("defendpp").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title,
        headlines=[
            *headlines(records, budgets, baseline=baseline, control=control),
            *beside,
            *doubts.in_checks(checks or {}),
        ],
        control=control,
        budgets=budgets,
        blocks=blocks(records, budgets),
        curves=curves(records, budgets),
        galleries=[_gallery(name, arrays) for name, arrays in pictures.items()],
        measured=measured(records),
        facts={
            "Data": f"{records['data'].iloc[0]}, {records['split'].iloc[0]} images, n = {records['image'].nunique()}",
            "Scale": records["scale"].iloc[0],
            "Networks": ", ".join(
                f"{name} ({', '.join(rows['network_id'].unique())})"
                for name, rows in records.groupby("network", sort=False)
            ),
            **(notes or {}),
        },
    )


def write_html(text: str, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a page, whole or not at all; FileExistsError if another one is there, unless `overwrite`."""
    path = Path(path)
    if path.exists() and not overwrite and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(f"{path} is there already with other content; remove it, or ask to overwrite it")
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
