"""What the paper claims, held against records: its numbers, the order of the attacks, the budget, what is removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import mean

import numpy as np
import pandas as pd

from defendpp import intervals, paper, study, tables
from defendpp.findings import PROTOCOLS, measurements, right
from defendpp.intervals import Accuracy, MeanAccuracy
from defendpp.paper import FIGURE6_EPSILONS, Protocol, Row, Scale
from defendpp.questions import FARTHER, OTHER
from defendpp.study import TABLES, Picture, Place, figure6

CLAIMED = {"ours": "ours", "ours + GN": "ours + GN", "ours, fine-tuned": "ours", "ours, as released": "ours"}
"""Roles of Defend++, and the role whose published numbers each is held against: the released scripts fine-tune."""
CONTROLS = {
    "table2": ("MNIST", OTHER, "undefended, another seed"),
    "table3": ("CIFAR-10", OTHER, "undefended, another seed"),
    "table4": ("ImageNet", "No defense, fine-tuned", "undefended, fine-tuned alike"),
}
"""The tables that the paper's case rests on: their data, and the row that Defend++ has to beat."""
HOW: dict[Protocol, str] = {"transfer": "shown images of another network", "white-box": "attacked itself"}
LARGER = "BIM 0.3"
"""The column of a larger budget than the paper gives for FGSM."""
REBUILT, CUT = ("D_rc", "D_ra"), ("D_tc", "D_ta")
"""Arrays of `figure_data.removal`: distances to the clean and to the attacked image."""


def headlines(scale: Scale, place: Place) -> str:
    """What is left right of Defend++ and of what it has to beat, of the training seeds that both have, under both
    protocols and beside what the paper reports: a table in Markdown. Empty where nothing was measured."""
    attacks = ("FGSM", "BIM", "DDN")
    lines = []
    for name, (data, control, called) in CONTROLS.items():
        published = next(row for row in TABLES[name].rows if row.name == "ours").published
        reported = f"| {data} | Defend++, reported | {' | '.join(f'{published[each]:.2f}' for each in attacks)} |"
        told = []
        for protocol, how in HOW.items():
            pairs = [
                [right(name, row, [each], protocol, scale, place) for row in ("ours", control)] for each in attacks
            ]
            shared = [[seed for seed in ours if seed in other] for ours, other in pairs]
            for k, shown in enumerate(("Defend++", called)):
                cells = [_shown([pair[k][seed] for seed in seeds]) for pair, seeds in zip(pairs, shared, strict=True)]
                told += [f"| | {shown}, {how} | {' | '.join(cells)} |"] * any(shared)
        lines += [reported, *told] if told else []
    head = [f"| | | {' | '.join(attacks)} |", "|---|---" + "|---:" * len(attacks) + "|"]
    return "\n".join([*head, *lines]) if lines else ""


def _shown(measured: "Sequence[pd.Series[bool]]") -> str:
    """Accuracy with its interval and its images, or a dash."""
    if not measured:
        return "–"
    found = tables.estimate(measured)
    return f"{tables.percent(found)}, n = {found.n:,}"


@dataclass(frozen=True)
class Held:
    """A published number beside what was measured."""

    table: str
    row: Row
    column: str
    reported: float
    measured: Mapping[Protocol, Accuracy | MeanAccuracy]

    def is_within(self, protocol: Protocol) -> bool:
        """Whether the number lies in the 95 % interval of what was measured, if it was."""
        found = self.measured.get(protocol)
        return found is not None and 100 * found.low <= self.reported <= 100 * found.high

    def told(self, protocol: Protocol) -> str:
        """What was measured, in %, or a dash."""
        return tables.percent(self.measured[protocol]) if protocol in self.measured else "–"


def held(scale: Scale, place: Place) -> list[Held]:
    """Every published number, table by table, and what was measured of its cell; what tables share is there once.

    Fine-tuned rows, which the paper does not have, are held against its "ours". The row "No defense" is the source,
    which the images of the paper's protocol were made on: it has white-box accuracies only.
    """
    found: dict[tuple[str, ...], Held] = {}
    for name in (each for each in study.NAMES if each in paper.TABLES):
        table = paper.TABLES[name]
        for row in (each for each in table.rows if each.role):
            role = CLAIMED.get(row.role, row.role)
            claim = next(each for each in table.rows if (each.role, each.network) == (role, row.network)).published
            for column in (each for each in table.columns if each.name in claim):
                cells = study.cell(table, row, column, scale)
                key = tuple(each.key for groups in cells for group in groups.values() for each in group)
                by_protocol = {
                    protocol: right(name, row.name, [column.name], protocol, scale, place) for protocol in PROTOCOLS
                }
                is_own = row.role == "source" and column.attack != "Clean" and column.source == column.network
                measured = {
                    protocol: tables.estimate([*by_seed.values()])
                    for protocol, by_seed in by_protocol.items()
                    if by_seed and not (is_own and protocol == "transfer")
                }
                if measured and key not in found:
                    found[key] = Held(name, row, column.name, claim[column.name], measured)
    return list(found.values())


def reproduced(scale: Scale, place: Place) -> str:
    """Which published numbers lie in the 95 % interval of what was measured under either protocol: of Defend++ each,
    of all other rows how many; and which fit white-box accuracy alone. In Markdown; empty where nothing was measured.
    """
    every = held(scale, place)
    if not every:
        return ""
    claimed = [each for each in every if each.row.role in CLAIMED]
    others = [each for each in every if each.row.role not in CLAIMED]
    counted = [each for each in claimed if CLAIMED[each.row.role] == each.row.role]
    lines = [
        f"Measured at “{scale}” scale, the interval of Defend++ holds the published number of an attack in "
        f"{_share(counted, 'transfer', clean=False)} cells under the paper's protocol and in "
        f"{_share(counted, 'white-box', clean=False)} white-box, and of clean accuracy in "
        f"{_share(counted, 'transfer', clean=True)}. An interval tens of points wide holds almost anything: its “yes” "
        "means little. The paper has no fine-tuned rows, which its released scripts would give: they are held against "
        "its “ours”, and not counted.",
        "",
        "| | row | | reported | paper's protocol | within | white-box | within |",
        "|---|---|---|---:|---:|---|---:|---|",
        *(_line(each) for each in sorted(claimed, key=lambda each: each.table)),
    ]
    rows = dict.fromkeys((each.table, each.row.name) for each in others)
    if rows:
        lines += ["", "Of the other rows, how many of the numbers published of attacks lie within:", ""]
        lines += ["| | row | paper's protocol | white-box | clean accuracy |", "|---|---|---|---|---|"]
    for table, row in sorted(rows):
        mine = [each for each in others if (each.table, each.row.name) == (table, row)]
        shares = [
            _share(mine, "transfer", clean=False), _share(mine, "white-box", clean=False),
            _share(mine, "transfer", clean=True),
        ]  # fmt: skip
        lines.append(f"| {_spaced(table)} | {row} | {' | '.join(shares)} |")
    unreached = misfits(every)
    if unreached:
        lines += [
            "",
            "Published numbers that what was measured under the paper's protocol does not reach, and white-box "
            "accuracy does. Either these were not made as in its scripts, which have no code for BIM and PGD, or with "
            "other budgets than ours, of which the paper says nothing either:",
            "",
            "| | row | | reported | paper's protocol | white-box |",
            "|---|---|---|---:|---:|---:|",
        ]
    lines += [
        f"| {_spaced(each.table)} | {each.row.name} | {each.column} | {each.reported:.2f} | {each.told('transfer')} | "
        f"{each.told('white-box')} |"
        for each in sorted(unreached, key=lambda each: each.table)
    ]
    larger = {
        each.row.name: right("variations", each.row.name, [LARGER], "transfer", scale, place)
        for each in unreached
        if each.row.name in {row.name for row in TABLES["variations"].rows}
    }
    told = [f"“{name}” {tables.percent(tables.estimate([*each.values()]))}" for name, each in larger.items() if each]
    if told:
        lines += ["", f"Under {LARGER}, half as much again, and the paper's protocol: {', '.join(told)}."]
    return "\n".join(lines)


def tried(scale: Scale, place: Place) -> list[str]:
    """By data and attack how near each way to train Defend++ without noise came to the published number."""
    lines = []
    for data, names in {"MNIST": ("table2", "table1"), "CIFAR-10": ("table3",), "ImageNet": ("table4",)}.items():
        for attack in ("FGSM", "BIM"):
            reported = next(row for row in TABLES[names[0]].rows if row.name == "ours").published[attack]
            found: dict[str, tuple[str, Accuracy | MeanAccuracy]] = {}
            for name in names:
                for row in (each for each in TABLES[name].rows if each.role not in ("", "comdefend-wb")):
                    recipe = paper.recipe(row.role, TABLES[name].data, row.network, scale, paper.SEEDS[0])
                    if row.role not in found and recipe.defence == "defend" and not recipe.noise:
                        by_seed = right(name, row.name, [attack], "transfer", scale, place)
                        if by_seed:
                            found[row.role] = row.name, tables.estimate([*by_seed.values()])
            if found:
                shown = sorted(found.values(), key=lambda each: -each[1].value)
                told = ", ".join(f"“{name}” {tables.percent(each)}" for name, each in shown)
                lines.append(f"{data}, {attack}: the paper has {reported:.2f}. {told}.")
    return lines


def misfits(every: Sequence[Held]) -> list[Held]:
    """Of the paper's own rows what does not lie in the interval of the paper's protocol, and does in white-box's."""
    return [
        each
        for each in every
        if CLAIMED.get(each.row.role, each.row.role) == each.row.role
        and "transfer" in each.measured
        and not each.is_within("transfer")
        and each.is_within("white-box")
    ]


def _line(each: Held) -> str:
    told = (
        f"{each.told(protocol)} | {'yes' if each.is_within(protocol) else 'no'}" if protocol in each.measured else "– |"
        for protocol in PROTOCOLS
    )
    return f"| {_spaced(each.table)} | {each.row.name} | {each.column} | {each.reported:.2f} | {' | '.join(told)} |"


def _spaced(table: str) -> str:
    return table.replace("table", "table ")


def _share(cells: Sequence[Held], protocol: Protocol, *, clean: bool) -> str:
    """How many of these, of attacks or of clean images, lie within, and of how many that were measured."""
    measured = [each for each in cells if protocol in each.measured and (each.column == "Clean") == clean]
    return f"{sum(each.is_within(protocol) for each in measured)} of {len(measured)}" if measured else "–"


def budget_and_removal(scale: Scale, place: Place) -> list[str]:
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


def universality(name: str, scale: Scale, place: Place) -> list[str]:
    """What section 4.5 claims of table 7 or 8: that images of another network do less harm to Defend++ than those of
    its own architecture, and that ResNet-50 resists more than ResNet-18; and whether an undefended network does so
    too. Paired, over the training seeds that both cells have."""
    columns = {(each.network, each.source): each.name for each in TABLES[name].columns}
    asked = [
        (column, columns[network, network], "to show it images of another architecture")
        for (network, source), column in columns.items()
        if network != source
    ]
    asked.append((columns["resnet50", "resnet50"], columns["resnet18", "resnet18"], "to be the larger network"))
    lines = []
    for column, than, what in asked:
        told = []
        for row in ("ours", OTHER):
            first, second = (right(name, row, [each], "transfer", scale, place) for each in (column, than))
            by_seed = [
                intervals.paired_difference(both[:, 0], both[:, 1])
                for both in (
                    pd.concat([first[seed], second[seed]], axis=1, join="inner").to_numpy()
                    for seed in first
                    if seed in second
                )
            ]
            if by_seed:
                difference = by_seed[0] if len(by_seed) == 1 else intervals.mean_difference(by_seed)
                told.append(f"“{row}” {difference}, n = {difference.n:,}")
        if told:
            lines.append(f"{column} less {than}, {what}: {'; '.join(told)}.")
    return lines


def visibility(scale: Scale, place: Place) -> list[str]:
    """Sections 4.2 and 4.4: BIM's images are the more visible. How far FGSM and BIM moved those of the source, L2."""
    lines = []
    for name, (data, _, _) in CONTROLS.items():
        moved = {}
        for attack in ("FGSM", "BIM"):
            groups, _ = measurements(name, "No defense", attack, "white-box", scale)
            frames = [frame for group in groups.values() for frame in tables.outcomes(group, place) or []]
            if frames:
                l2 = pd.concat([frame["l2"] for frame in frames])
                moved[attack] = float(l2[l2 > 0].median())
        if len(moved) == 2:
            more = max(moved, key=lambda each: moved[each])
            lines.append(
                f"{data}: FGSM moves the images of “No defense” by {moved['FGSM']:.2f}, BIM by {moved['BIM']:.2f} "
                f"(median L2) within the same L∞ budget, so that {more}'s are the more visible. The paper has BIM's: "
                "with a larger budget than FGSM's, or judged otherwise."
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
    """Whether the paper's order of the attacks on a row is that of transfer or of white-box accuracy, pair by pair of
    attacks; and how near clean accuracy the row stays under images that cross the source's boundary."""
    attacks = ("FGSM", "BIM", "C&W", "DDN")
    published = next(each for each in TABLES[name].rows if each.name == row).published
    reported = {attack: published[attack] for attack in attacks}
    lines = ["Reported, from the strongest attack: " + _order(reported) + "."]
    for protocol in PROTOCOLS:
        found = {attack: right(name, row, [attack], protocol, scale, place) for attack in attacks}
        both = [seed for seed in found["FGSM"] if all(seed in each for each in found.values())]
        if both:
            images = pd.concat([each[both[0]] for each in found.values()], axis=1, join="inner").index
            means = {
                attack: 100 * float(np.mean([by_seed[seed][images].mean() for seed in both]))
                for attack, by_seed in found.items()
            }
            pairs = list(combinations(attacks, 2))
            alike = sum((reported[a] - reported[b]) * (means[a] - means[b]) > 0 for a, b in pairs)
            lines.append(
                f"Measured, {protocol}: {_order(means)} (n = {len(images):,}); {alike} of {len(pairs)} pairs of "
                "attacks in the reported order."
            )
    return lines + _crossings(name, row, scale, place)


def _crossings(name: str, row: str, scale: Scale, place: Place) -> list[str]:
    """How near clean accuracy `row` stays under transferred minimal-norm attacks, and how far their images lie."""
    clean = right(name, row, ["Clean"], "transfer", scale, place)
    told, far = [], []
    for attack in FARTHER:
        groups, _ = measurements(name, row, attack, "transfer", scale)
        frames = {seed: tables.outcomes(group, place) for seed, group in groups.items()}
        shown = {seed: pd.concat(each) for seed, each in frames.items() if each is not None and seed in clean}
        if shown:
            kept = mean(100 * float(each["correct"].mean()) for each in shown.values())
            unharmed = mean(100 * float(clean[seed][each.index].mean()) for seed, each in shown.items())
            moved = pd.concat([each["l2"] for each in shown.values()])
            far.append(float(moved[moved > 0].median()))
            told.append(
                f"{kept:.1f} % instead of {unharmed:.1f} % under {attack}, whose images are moved by {far[-1]:.2f} "
                "(median L2)"
            )
    if not told:
        return []
    why = ": C&W did not converge in its steps" if len(far) == len(FARTHER) and far[0] > far[1] else ""
    return [f"Images across the source's boundary leave “{row}” {', and '.join(told)}{why}."]


def _order(accuracies: dict[str, float]) -> str:
    """From the lowest; what is printed alike counts as equal."""
    ordered = sorted(accuracies.items(), key=lambda each: each[1])
    told = [f"{name} {value:.1f}" for name, value in ordered]
    signs = [" = " if f"{low:.1f}" == f"{high:.1f}" else " < " for (_, low), (_, high) in pairwise(ordered)]
    return "".join(part for pair in zip(told, [*signs, ""], strict=True) for part in pair)
