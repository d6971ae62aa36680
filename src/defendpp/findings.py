"""What the study says, in sentences with paired tests: computed from records, nothing typed.

Two rows of a table are compared image by image within each training seed, and then over the seeds. What was not
measured yet is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from defendpp import records, tables
from defendpp.paper import FIGURE6_EPSILONS, Protocol, Scale
from defendpp.study import TABLES, Picture, Place, cell, figure6


@dataclass(frozen=True)
class Question:
    """What is asked of pairs of rows: is the first more accurate than the second under these attacks?"""

    text: str
    table: str
    pairs: tuple[tuple[str, str], ...]
    protocol: Protocol = "transfer"
    columns: tuple[str, ...] = ("FGSM", "BIM", "PGD")


OTHER = "No defense, another seed"
QUESTIONS = (
    Question(
        "Does Defend++ beat an undefended network that is merely not the source? (MNIST)",
        "table2",
        (("ours", OTHER), ("ours, fine-tuned", "No defense, fine-tuned"), ("ours, fine-tuned", OTHER)),
    ),
    Question(
        "The same where the paper leaves something open (MNIST)",
        "variations",
        (
            ("ours", OTHER),
            ("ours, fine-tuned", "No defense, fine-tuned"),
            ("ours, fine-tuned, 0.8 of the full scale", "No defense, fine-tuned"),
        ),
        columns=("FGSM 0.3", "BIM 0.3", "FGSM, 8 bits", "BIM, 8 bits", "FGSM, another source", "BIM, another source"),
    ),
    Question("And on CIFAR-10?", "table3", (("ours", OTHER),), columns=("FGSM", "BIM")),
    Question(
        "Does the multi-scale low-pass objective matter?",
        "table1",
        (("ours", "ours w/o MS-LP"), ("ours", "ours w/ MS-LI")),
        columns=("FGSM", "BIM"),
    ),
    Question(
        "Does the pyramid with its H modules matter?",
        "table1",
        (("ours", "Hourglass"), ("ours", "Hourglass+SC"), ("ours", "Hourglass+SA")),
        columns=("FGSM", "BIM"),
    ),
    Question(
        "Does sharing more blocks help?",
        "table1",
        tuple(("4 shared blocks", each) for each in ("1 shared block", "2 shared blocks", "3 shared blocks")),
        columns=("FGSM", "BIM"),
    ),
    Question("What does the decoder add to noise?", "table2", (("ours + GN", "noise alone"),)),
    Question("What does noise add to the decoder?", "table2", (("ours + GN", "ours"),)),
    Question(
        "White-box, is Defend++ harder to fool than an undefended network?",
        "table2",
        (("ours", OTHER), ("ours + GN", OTHER), ("ours + GN", "noise alone")),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
    ),
    Question(
        "White-box, against adversarial training",
        "table2",
        (("ours", "Adv. FGSM"), ("ours", "Adv. DDN"), ("ours", "Adv. PGD")),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
    ),
)


def right(
    table: str, row: str, column: str, protocol: Protocol, scale: Scale, place: Place
) -> "dict[int, pd.Series[bool]]":
    """Which images stayed right, by training seed, indexed by image, for the seeds that were measured."""
    of_row = next(each for each in TABLES[table].rows if each.name == row)
    of_column = next(each for each in TABLES[table].columns if each.name == column)
    groups = cell(TABLES[table], of_row, of_column, scale)[protocol == "white-box"]
    found = {group[0].target.seed: tables.right(group, place, of_column.radius) for group in groups}
    return {seed: values for seed, values in found.items() if values is not None}


def contrast(
    table: str, a: str, b: str, column: str, protocol: Protocol, scale: Scale, place: Place
) -> records.Difference | records.MeanDifference | None:
    """Accuracy of row a less that of row b, over the seeds that both have; None where they have none in common.

    Raises `ValueError` where they were not measured on the same images.
    """
    first, second = (right(table, row, column, protocol, scale, place) for row in (a, b))
    by_seed = []
    for seed in [seed for seed in first if seed in second]:
        if not first[seed].index.equals(second[seed].index):
            raise ValueError(f"“{a}” and “{b}” of {table} saw different images under {column}: measure them again")
        by_seed.append(records.paired_difference(first[seed].to_numpy(), second[seed].to_numpy()))
    if len(by_seed) < 2:
        return by_seed[0] if by_seed else None
    return records.mean_difference(by_seed)


def answers(question: Question, scale: Scale, place: Place) -> list[str]:
    """A line for each pair that was measured: what the differences amount to, and the differences."""
    lines = []
    for a, b in question.pairs:
        found = {
            name: contrast(question.table, a, b, name, question.protocol, scale, place) for name in question.columns
        }
        present = {name: each for name, each in found.items() if each is not None}
        if present:
            told = [f"{name} {each}{_reported(question, a, b, name)}" for name, each in present.items()]
            lines.append(
                f"“{a}” against “{b}”: **{_verdict([*present.values()], len(question.columns))}**. {'; '.join(told)}."
            )
    return lines


def _verdict(found: Sequence[records.Difference | records.MeanDifference], wanted: int) -> str:
    told = _told(found)
    if len(found) < wanted:
        told += f", of which {len(found)} of {wanted} were measured"
    if any(isinstance(each, records.Difference) for each in found):
        told += ", of this one pair of networks; other training seeds were not tried"
    return told


def _told(found: Sequence[records.Difference | records.MeanDifference]) -> str:
    signs = {1 if each.low > 0 else -1 if each.high < 0 else 0 for each in found}
    if signs == {1}:
        return "higher under every attack here"
    if signs == {-1}:
        return "lower under every attack here"
    if signs == {0}:
        return "no difference that these measurements can tell from chance"
    if 1 in signs and -1 in signs:
        return "higher under some attacks and lower under others"
    return f"{'higher' if 1 in signs else 'lower'} under some attacks, no clear difference under others"


def _reported(question: Question, a: str, b: str, column: str) -> str:
    """The paper's difference, where it has both rows."""
    published = {row.name: row.published.get(column) for row in TABLES[question.table].rows}
    first, second = published[a], published[b]
    if first is None or second is None or question.protocol != "transfer":
        return ""
    return f" (paper {first - second:+.2f})"


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
                ratio, nearer = found[f"{protocol} R"], found[f"{protocol} D_rc"] < found[f"{protocol} distance"]
                share, shares = (records.accuracy(each) for each in (ratio < 1, nearer))
                lines.append(
                    f"R < 1 for {share} of n = {share.n:,} FGSM images, {protocol} (the paper: always); nearer to the "
                    f"clean image than the attacked one was: {shares}."
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


def orders(scale: Scale, place: Place) -> list[str]:
    """Whether the paper's order of the attacks on its own defence is that of transfer or of white-box accuracy."""
    names = ("FGSM", "BIM", "C&W", "DDN")
    row = next(row for row in TABLES["table2"].rows if row.name == "ours")
    reported = {name: row.published[name] for name in names}
    lines = ["Reported, from the strongest attack: " + _order(reported) + "."]
    for protocol in ("transfer", "white-box"):
        found = {name: right("table2", "ours", name, protocol, scale, place) for name in names}
        if all(found.values()):
            means = {name: 100 * float(np.mean([values.mean() for values in found[name].values()])) for name in names}
            lines.append(f"Measured, {protocol}: {_order(means)}.")
    return lines


def _order(accuracies: dict[str, float]) -> str:
    return " < ".join(f"{name} {value:.1f}" for name, value in sorted(accuracies.items(), key=lambda each: each[1]))
