"""What the study says, in sentences with paired tests: computed from records, nothing typed.

Two rows of a table are compared image by image within each training seed, and then over the seeds. What was not
measured yet is left out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import mean
from typing import get_args

import numpy as np
import pandas as pd

from defendpp import intervals, robustness, tables
from defendpp.paper import FIGURE6_EPSILONS, Protocol, Scale
from defendpp.study import TABLES, Measurement, Picture, Place, cell, figure6, seeds

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
FLOOR = 0.01
"""Where neither of two rows has more than this share of images right, their difference tells nothing."""
SIGNS = {"higher": 1, "lower": -1, "no clear difference": 0}
"""What a verdict calls the sign of a difference that is clear of chance, or 0."""


@dataclass(frozen=True)
class Question:
    """What is asked of pairs of rows: does the first resist better than the second?"""

    text: str
    table: str
    pairs: tuple[tuple[str, str], ...]
    protocol: Protocol = "transfer"
    columns: tuple[str, ...] = ("FGSM", "BIM", "PGD")
    """What the verdict is drawn from: each of them by itself."""
    together: bool = False
    """All of them as one attack: an image counts where it is right under each."""
    beside: tuple[str, ...] = ()
    """Told, and no part of the verdict."""
    nearest: tuple[str, ...] = ()
    """Minimal-norm attacks; how far the nearer of them must go is told too."""


OTHER = "No defense, another seed"
FARTHER = ("C&W", "DDN")
"""Transferred, these stop just across the boundary of their source: high accuracies mean little."""
QUESTIONS = (
    Question(
        "Does Defend++ beat an undefended network that is merely not the source? (MNIST)",
        "table2",
        (
            ("ours", OTHER),
            ("ours, alternating", OTHER),
            ("ours, fine-tuned", "No defense, fine-tuned"),
            ("ours, fine-tuned", OTHER),
        ),
        beside=(*FARTHER, "Clean"),
    ),
    Question(
        "The same where the paper leaves something open (MNIST)",
        "variations",
        (
            ("ours", OTHER),
            ("ours, fine-tuned", "No defense, fine-tuned"),
            ("ours, fine-tuned, 0.8 of the full scale", "No defense, fine-tuned"),
        ),
        columns=("FGSM 0.3", "BIM 0.3", "FGSM, 8 bits", "BIM, 8 bits"),
    ),
    Question(
        "And on CIFAR-10?",
        "table3",
        (("ours", OTHER), ("ours + GN", "noise alone")),
        columns=("FGSM", "BIM"),
        beside=(*FARTHER, "Clean"),
    ),
    Question(
        "And on ImageNet, where all are fine-tuned from the network that the images were made on?",
        "table4",
        (("ours", "No defense, fine-tuned"),),
        columns=("FGSM", "BIM"),
        beside=(*FARTHER, "Clean"),
    ),
    *(
        Question(
            f"And with other networks on {data}?",
            table,
            tuple((f"ours ({network})", f"{OTHER} ({network})") for network in ("VGG16", "ResNet-50")),
            columns=("FGSM", "BIM"),
            beside=FARTHER,
        )
        for table, data in (("table5", "MNIST"), ("table6", "CIFAR-10"))
    ),
    Question(
        "Does the multi-scale low-pass objective matter?",
        "table1",
        (("ours", "ours w/o MS-LP"), ("ours", "ours w/ MS-LI")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
    ),
    Question(
        "Does the pyramid with its H modules matter?",
        "table1",
        (("ours", "Hourglass"), ("ours", "Hourglass+SC"), ("ours", "Hourglass+SA")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
    ),
    Question(
        "Does sharing more blocks help?",
        "table1",
        tuple(("4 shared blocks", each) for each in ("1 shared block", "2 shared blocks", "3 shared blocks")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
    ),
    Question(
        "Under the paper's protocol, against adversarial training and ComDefend",
        "table2",
        tuple(("ours", each) for each in ("Adv. FGSM", "Adv. DDN", "Adv. PGD", "ComDefend")),
        beside=(*FARTHER, "Clean"),
    ),
    Question(
        "What does the decoder add to noise as weak as the paper's?",
        "table2",
        (("ours + GN", "noise alone"),),
        beside=FARTHER,
    ),
    Question(
        "What does noise as weak as the paper's add to the decoder?", "table2", (("ours + GN", "ours"),), beside=FARTHER
    ),
    Question(
        "White-box, is Defend++ harder to fool than an undefended network? (MNIST)",
        "table2",
        (("ours", OTHER), ("ours, alternating", OTHER), ("ours + GN", OTHER), ("ours + GN", "noise alone")),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
    Question(
        "The same on CIFAR-10",
        "table3",
        (("ours", OTHER), ("ours + GN", OTHER), ("ours + GN", "noise alone")),
        "white-box",
        ("FGSM", "BIM", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
    Question(
        "The same on ImageNet",
        "table4",
        (("ours", "No defense, fine-tuned"),),
        "white-box",
        ("FGSM", "BIM"),
        together=True,
        nearest=FARTHER,
    ),
    Question(
        "White-box, against adversarial training",
        "table2",
        (("ours", "Adv. FGSM"), ("ours", "Adv. DDN"), ("ours", "Adv. PGD")),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
)


@dataclass(frozen=True)
class Contrast:
    """One row against another, over the seeds that both have."""

    difference: intervals.Difference | intervals.MeanDifference
    best: float
    """Accuracy of the better of the two."""
    seeds: int
    planned: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        return 1 if self.difference.low > 0 else -1 if self.difference.high < 0 else 0

    def __str__(self) -> str:
        told = f"both at most {100 * self.best:.1f} %" if self.best <= FLOOR else str(self.difference)
        return f"{told}, n = {self.difference.n:,}"


def right(
    table: str, row: str, columns: Sequence[str], protocol: Protocol, scale: Scale, place: Place
) -> "tuple[dict[int, pd.Series[bool]], int]":
    """Which images stayed right under all these, by training seed, for the seeds that were measured; and how many
    seeds there are to be. Where columns are of different images, those that all have."""
    found: list[dict[int, pd.Series[bool]]] = []
    planned = []
    for name in columns:
        groups, radius = _measurements(table, row, name, protocol, scale)
        planned.append(len(groups))
        by_seed = {group[0].target.seed: tables.right(group, place, radius) for group in groups}
        found.append({seed: values for seed, values in by_seed.items() if values is not None})
    shared = [seed for seed in found[0] if all(seed in each for each in found)]
    joined = {seed: pd.concat([each[seed] for each in found], axis=1, join="inner").all(axis=1) for seed in shared}
    return joined, min(planned)


def on_part(
    table: str, row: str, everything: str, part: str, scale: Scale, place: Place
) -> tuple[intervals.Accuracy, intervals.Accuracy] | None:
    """How hard the images of column `part` are: white-box accuracy under the attack of column `everything`, on all
    images and on those of `part` alone. Of the first training seed that has both; None where none has."""
    (whole, _), (few, _) = (right(table, row, [each], "white-box", scale, place) for each in (everything, part))
    for seed in sorted(set(whole) & set(few)):
        images = whole[seed]
        return intervals.accuracy(images.to_numpy()), intervals.accuracy(images[few[seed].index].to_numpy())
    return None


def _measurements(
    table: str, row: str, column: str, protocol: Protocol, scale: Scale
) -> tuple[list[list[Measurement]], float | None]:
    of_row = next(each for each in TABLES[table].rows if each.name == row)
    of_column = next(each for each in TABLES[table].columns if each.name == column)
    return cell(TABLES[table], of_row, of_column, scale)[protocol == "white-box"], of_column.radius


def contrast(
    table: str,
    a: str,
    b: str,
    columns: Sequence[str],
    protocol: Protocol,
    scale: Scale,
    place: Place,
    among: Collection[int] | None = None,
) -> Contrast | None:
    """Accuracy of row a less that of row b under all of `columns`; None where they have no seed in common, of those
    `among` where these are given.

    Raises `ValueError` where they were not measured on the same images.
    """
    (first, planned), (second, also) = (right(table, row, columns, protocol, scale, place) for row in (a, b))
    by_seed, best = [], 0.0
    for seed in [seed for seed in first if seed in second and (among is None or seed in among)]:
        if not first[seed].index.equals(second[seed].index):
            names = " and ".join(columns)
            raise ValueError(f"“{a}” and “{b}” of {table} saw different images under {names}: measure them again")
        by_seed.append(intervals.paired_difference(first[seed].to_numpy(), second[seed].to_numpy()))
        best = max(best, float(first[seed].mean()), float(second[seed].mean()))
    if not by_seed:
        return None
    difference = by_seed[0] if len(by_seed) == 1 else intervals.mean_difference(by_seed)
    return Contrast(difference, best, len(by_seed), min(planned, also))


@dataclass(frozen=True)
class Answer:
    """Of one pair of rows: what the differences amount to, and the differences."""

    pair: tuple[str, str]
    verdict: str
    differences: str
    seeds: int
    planned: int

    def __str__(self) -> str:
        if self.seeds > 1:
            so_far = f", so far of {self.seeds} of {self.planned} training seeds" * (self.seeds < self.planned)
            told = f"**{self.verdict}**{so_far}"
        elif self.planned > 1:
            told = f"{self.verdict}, so far of one pair of networks, which is no verdict on the method"
        else:
            told = f"{self.verdict}, of this one pair of networks; other training seeds were not tried"
        return f"{self.compared}: {told}. {self.differences}."

    @property
    def compared(self) -> str:
        """The two rows."""
        return "“{}” against “{}”".format(*self.pair)


def answers(question: Question, scale: Scale, place: Place) -> list[Answer]:
    """One for each pair that was measured."""
    found = (_answer(question, a, b, scale, place) for a, b in question.pairs)
    return [each for each in found if each is not None]


def in_short(asked: "Mapping[Question, Sequence[Answer]]") -> str:
    """The verdicts alone, in Markdown: a sentence and a table."""
    lines = [
        "In short; the differences behind each verdict, with their tests, follow. Bold: of several training seeds; one "
        "seed, which is one pair of networks, is no verdict on the method.",
        "",
        "| | compared | attacker | verdict | training seeds |",
        "|---|---|---|---|---|",
    ]
    for question, found in asked.items():
        attacker = "paper's protocol" if question.protocol == "transfer" else "white-box"
        for number, each in enumerate(found):
            verdict = f"**{each.verdict}**" if each.seeds > 1 else each.verdict
            seeds = f"{each.seeds} of {each.planned}" if each.seeds < each.planned else str(each.seeds)
            lines.append(f"| {question.text * (number == 0)} | {each.compared} | {attacker} | {verdict} | {seeds} |")
    return "\n".join(lines)


def _answer(question: Question, a: str, b: str, scale: Scale, place: Place) -> Answer | None:
    def compared(*columns: str, among: Collection[int] | None = None) -> Contrast | None:
        return contrast(question.table, a, b, columns, question.protocol, scale, place, among)

    shared = _seeds_of_all(question, a, b, scale, place)
    each = {name: compared(name, among=shared) for name in question.columns}
    beside = {name: compared(name) for name in question.beside}
    together = {"all of these": compared(*question.columns)} if question.together else {}
    judged = together or each
    present = [found for found in judged.values() if found is not None]
    if not present:
        return None
    told = [
        f"{name} {found}{_reported(question, a, b, name)}"
        for name, found in {**each, **together, **beside}.items()
        if found is not None
    ]
    shifts = _shifts(question, a, b, scale, place, shared)
    if shifts:
        names = " or ".join(question.nearest)
        told.append(f"L2 that {names} needs, median of the paired differences: {'; '.join(map(str, shifts))}")
    seeds, planned = (min(getattr(each, name) for each in present) for name in ("seeds", "planned"))
    return Answer((a, b), _verdict(judged, shifts), "; ".join(told), seeds, planned)


def _seeds_of_all(question: Question, a: str, b: str, scale: Scale, place: Place) -> set[int] | None:
    """The training seeds of which every judged column that was measured at all has both rows: one verdict must not be
    of one seed here and of another there. None where there are none."""
    measured = []
    for name in question.columns:
        of_rows = (_measurements(question.table, row, name, question.protocol, scale)[0] for row in (a, b))
        done = (
            {group[0].target.seed for group in groups if all(x.is_done(place) for x in group)} for groups in of_rows
        )
        measured.append(set.intersection(*done))
    found = [seeds for seeds in measured if seeds]
    return (set.intersection(*found) or None) if found else None


def _verdict(judged: Mapping[str, Contrast | None], shifts: Sequence[intervals.Shift]) -> str:
    """What the contrasts amount to, with the names of the columns where there are several."""
    found = {name: each for name, each in judged.items() if each is not None}
    kept = {name: each.sign for name, each in found.items() if each.best > FLOOR}
    if not kept:
        told = "neither withstands"
        if shifts:
            ways = {1 if each.low > 0 else -1 if each.high < 0 else 0 for each in shifts}
            way = "farther" if ways == {1} else "less far" if ways == {-1} else "neither clearly farther nor less far"
            told += f", and an attack in L2 must go {way}"
    else:
        if any(kept.values()):
            parts = [_under(word, kept, sign, len(judged)) for word, sign in SIGNS.items() if sign in kept.values()]
        else:
            parts = ["no difference that these measurements can tell from chance"]
        fell = [name for name in found if name not in kept]
        told = "; ".join([*parts, *[f"neither withstands {_listed(fell)}"] * bool(fell)])
    missing = [name for name in judged if name not in found]
    return told + f" (not measured yet: {_listed(missing)})" * bool(missing)


def _listed(names: Sequence[str]) -> str:
    """Names that may have commas of their own."""
    return ", ".join(f"“{name}”" if "," in name else name for name in names)


def _under(word: str, signs: Mapping[str, int], wanted: int, columns: int) -> str:
    names = [name for name, sign in signs.items() if sign == wanted]
    return word if columns == 1 else f"{word} under {_listed(names)}"


def _reported(question: Question, a: str, b: str, column: str) -> str:
    """The paper's difference, where it has both rows."""
    published = {row.name: row.published.get(column) for row in TABLES[question.table].rows}
    first, second = published[a], published[b]
    if first is None or second is None or question.protocol != "transfer":
        return ""
    return f" (paper {first - second:+.2f})"


def _shifts(
    question: Question, a: str, b: str, scale: Scale, place: Place, among: Collection[int] | None
) -> list[intervals.Shift]:
    """How much farther the nearer of the minimal-norm attacks must go on a than on b, by training seed."""
    shifts = []
    if question.nearest:
        first, second = (_distances(question, row, scale, place) for row in (a, b))
        for seed in [seed for seed in first if seed in second and (among is None or seed in among)]:
            both = first[seed].index.intersection(second[seed].index)
            if len(both):
                shifts.append(intervals.median_shift(first[seed][both].to_numpy(), second[seed][both].to_numpy()))
    return shifts


def _distances(question: Question, row: str, scale: Scale, place: Place) -> "dict[int, pd.Series[float]]":
    """By training seed: the L2 distance of the nearest for each image that is right when clean, infinite if none."""
    found: dict[int, list[pd.Series[float]]] = {}
    for name in question.nearest:
        groups, _ = _measurements(question.table, row, name, "white-box", scale)
        for group in groups:
            frames = tables.outcomes(group, place)
            if frames is not None:
                mine = found.setdefault(group[0].target.seed, [])
                right = [each[each["clean_prediction"] == each["label"]] for each in frames]
                mine.append(pd.concat([each["l2"].where(each["success"], inf) for each in right], axis=1).min(axis=1))
    nearest = {seed: pd.concat(each, axis=1, join="inner").min(axis=1) for seed, each in found.items()}
    return {seed: values for seed, values in nearest.items() if len(found[seed]) == len(question.nearest)}


def failures(name: str, scale: Scale, place: Place) -> list[str]:
    """White-box attacks of a table that left more images right than another at the same budget: they failed there.

    By row, of its first training seed. The other is an attack on the network itself, or images of the paper's protocol;
    one step may leave more right than many, and is compared with one step. Only what is clear of chance, from a point
    on.
    """
    table = TABLES[name]
    attacks = robustness.attacks(table.data)
    budgets = {
        column.name: (attacks[column.attack].norm, attacks[column.attack].epsilon)
        for column in table.columns
        if column.attack != "Clean" and attacks[column.attack].epsilon is not None
    }
    lines = []
    for row in (each for each in table.rows if each.role):
        seed = seeds(row, table, scale)[0]
        shown: dict[tuple[str, Protocol], pd.Series[bool]] = {}
        for protocol in PROTOCOLS:
            for column in budgets:
                by_seed, _ = right(name, row.name, [column], protocol, scale, place)
                if seed in by_seed:
                    shown[column, protocol] = by_seed[seed]
        told = []
        for (column, protocol), own in shown.items():
            rivals = {
                f"{by} made on the source" if how == "transfer" else by: other
                for (by, how), other in shown.items()
                if protocol == "white-box" and budgets[by] == budgets[column] and (column != "FGSM" or by == "FGSM")
            }
            told += _beaten(column, own, rivals)
        if told:
            lines.append(f"“{row.name}”: {'; '.join(told)}.")
    return lines


def _beaten(column: str, own: "pd.Series[bool]", rivals: "Mapping[str, pd.Series[bool]]") -> list[str]:
    """The rival that breaks the most images more than `own`, of those that both attacked, if clearly more."""
    clearest = intervals.clearest_gain(own, rivals)
    if clearest is None or clearest[1].value < FLOOR:
        return []
    by, gain = clearest
    both = own.index.intersection(rivals[by].index)
    kept, left = (100 * each[both].mean() for each in (own, rivals[by]))
    return [f"{column} leaves {kept:.1f} %, {by} {left:.1f} % (n = {gain.n:,})"]


REBUILT, CUT = ("D_rc", "D_ra"), ("D_tc", "D_ta")
"""Arrays of `figure_data.removal`: distances to the clean and to the attacked image."""


def claims(scale: Scale, place: Place) -> list[str]:
    """What section 4.5 claims of the budget that an attacker needs and of R, as far as it was measured."""
    lines = []
    for protocol in ("transfer", "white-box"):
        budgets = {role: _half(role, protocol, scale, place) for role in ("source", "none", "ours")}
        if all(budgets.values()):
            source, none, ours = (f"{budgets[role]:.2f}" for role in ("source", "none", "ours"))
            lines.append(
                f"The FGSM budget that leaves half the images right, {protocol}: {source} on “No defense”, {none} on "
                f"“{OTHER}”, {ours} on “ours”. The paper: Defend++ makes the attacker “almost double” it."
            )
    arrays = Picture("figure8", scale).file(place)
    if arrays.exists():
        with np.load(arrays) as found:
            for protocol in ("transfer", "white-box"):
                distance = found[f"{protocol} distance"]
                changed = distance > 0
                rebuilt, cut = ([found[f"{protocol} {name}"] for name in pair] for pair in (REBUILT, CUT))
                shares = [
                    intervals.accuracy(each[changed])
                    for to_clean, to_attacked in (rebuilt, cut)
                    for each in (to_clean < to_attacked, to_clean < distance)
                ]
                lines.append(
                    f"R, the distance of the rebuilt image to the clean one over that to the attacked one, is below 1 "
                    f"for {shares[0]} of n = {shares[0].n:,} FGSM images, {protocol} (the paper: always), and the "
                    f"rebuilt image is nearer to the clean one than the attacked one was for {shares[1]}. Without any "
                    "network, the attacked image with its pixels below 0.5 set to 0 does both as well, for "
                    f"{shares[2]} and {shares[3]}. The classifier never sees what is rebuilt."
                )
    return lines


def _half(role: str, protocol: str, scale: Scale, place: Place) -> float | None:
    """The FGSM budget at which accuracy falls through one half, between the budgets of figure 6."""
    measured = [tables.right([each], place) for each in figure6(scale)[protocol, role]]
    shares = [float(each.mean()) for each in measured if each is not None]
    budgets = (0.0, *FIGURE6_EPSILONS)
    if len(shares) < len(budgets):
        return None
    for (low, before), (high, after) in pairwise(zip(budgets, shares, strict=True)):
        if before >= 0.5 > after:
            return low + (high - low) * (before - 0.5) / (before - after)
    return None


def orders(name: str, scale: Scale, place: Place, row: str = "ours") -> list[str]:
    """Whether the paper's order of the attacks on a row is that of transfer or of white-box accuracy; and how near
    clean accuracy the row stays under images that cross the source's boundary."""
    attacks = ("FGSM", "BIM", "C&W", "DDN")
    published = next(each for each in TABLES[name].rows if each.name == row).published
    reported = {attack: published[attack] for attack in attacks}
    lines = ["Reported, from the strongest attack: " + _order(reported) + "."]
    for protocol in PROTOCOLS:
        found = {attack: right(name, row, [attack], protocol, scale, place)[0] for attack in attacks}
        both = [seed for seed in found["FGSM"] if all(seed in each for each in found.values())]
        if both:
            images = pd.concat([each[both[0]] for each in found.values()], axis=1, join="inner").index
            means = {
                attack: 100 * float(np.mean([by_seed[seed][images].mean() for seed in both]))
                for attack, by_seed in found.items()
            }
            lines.append(f"Measured, {protocol}: {_order(means)} (n = {len(images):,}).")
    return lines + _crossings(name, row, scale, place)


def _crossings(name: str, row: str, scale: Scale, place: Place) -> list[str]:
    """How near clean accuracy `row` stays under transferred minimal-norm attacks, and how far their images lie."""
    clean, _ = right(name, row, ["Clean"], "transfer", scale, place)
    told = []
    for attack in FARTHER:
        groups, _ = _measurements(name, row, attack, "transfer", scale)
        frames = {group[0].target.seed: tables.outcomes(group, place) for group in groups}
        shown = {seed: pd.concat(each) for seed, each in frames.items() if each is not None and seed in clean}
        if shown:
            kept = mean(100 * float(each["correct"].mean()) for each in shown.values())
            unharmed = mean(100 * float(clean[seed][each.index].mean()) for seed, each in shown.items())
            moved = pd.concat([each["l2"] for each in shown.values()])
            far = f"moved by {moved[moved > 0].median():.2f} (median L2)"
            told.append(f"{kept:.1f} % instead of {unharmed:.1f} % under {attack}, whose images are {far}")
    return [f"Images across the source's boundary leave “{row}” {', and '.join(told)}."] if told else []


def _order(accuracies: dict[str, float]) -> str:
    """From the lowest; what is printed alike counts as equal."""
    ordered = sorted(accuracies.items(), key=lambda each: each[1])
    told = [f"{name} {value:.1f}" for name, value in ordered]
    signs = [" = " if f"{low:.1f}" == f"{high:.1f}" else " < " for (_, low), (_, high) in pairwise(ordered)]
    return "".join(part for pair in zip(told, [*signs, ""], strict=True) for part in pair)
