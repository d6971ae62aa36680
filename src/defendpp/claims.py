"""What the paper claims in words, held against records: the order of the attacks, the budget, what is removed, ..."""

from collections.abc import Sequence
from itertools import combinations, pairwise
from statistics import mean

import numpy as np
import pandas as pd

from defendpp import intervals, tables
from defendpp.findings import PROTOCOLS, left_by_source, measurements, paired, right
from defendpp.paper import FIGURE6_EPSILONS, Protocol, Scale
from defendpp.questions import FARTHER, OTHER
from defendpp.study import TABLES, Picture, Place, figure6

CONTROLS = {
    "table2": ("MNIST", OTHER, "undefended, another seed"),
    "table3": ("CIFAR-10", OTHER, "undefended, another seed"),
    "table4": ("ImageNet", "No defense, fine-tuned", "undefended, fine-tuned alike"),
}
"""The tables that the paper's case rests on: their data, and the row that Defend++ has to beat."""
HOW: dict[Protocol, str] = {"transfer": "shown images of another network", "white-box": "attacked itself"}
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
    asked = [(column, columns[network, network]) for (network, source), column in columns.items() if network != source]
    asked.append((columns["resnet50", "resnet50"], columns["resnet18", "resnet18"]))
    published = next(row for row in TABLES[name].rows if row.name == "ours").published
    lines = []
    for column, than in asked:
        told = []
        for row in ("ours", OTHER):
            first, second = (right(name, row, [each], "transfer", scale, place) for each in (column, than))
            found = paired(first, second, f"{column} and {than} of “{row}”, {name},", "FGSM")
            if found:
                told.append(f"“{row}” {found}")
        if told:
            paper = f" (the paper: {published[column] - published[than]:+.2f})" if column in published else ""
            weak = left_by_source(name, "ours", [column, than], scale, place)
            shares = ", ".join(f"{100 * share:.1f} % under {each}" for each, share in weak.items())
            failed = f" Of these images their own source gets right {shares}: they hardly attack." if weak else ""
            lines.append(f"{column}, beside {than}{paper}: {'; '.join(told)}.{failed}")
    return lines


def visibility(scale: Scale, place: Place) -> list[str]:
    """Sections 4.2 and 4.4, of MNIST and ImageNet: BIM's images are the more visible. How far FGSM and BIM moved the
    same images of the source, in L2."""
    lines = []
    for name in ("table2", "table4"):
        moved = []
        for attack in ("FGSM", "BIM"):
            groups, _ = measurements(name, "No defense", attack, "white-box", scale)
            frames = {seed: tables.outcomes(group, place) for seed, group in groups.items()}
            moved.append({seed: pd.concat(each)["l2"] for seed, each in frames.items() if each is not None})
        fgsm, bim = moved
        pairs = [
            pd.concat([fgsm[seed], bim[seed]], axis=1, join="inner", keys=["FGSM", "BIM"])
            for seed in fgsm
            if seed in bim
        ]
        if pairs:
            both = pd.concat(pairs)
            both = both[(both > 0).all(axis=1)]  # what was wrong to begin with is not moved
            medians = both.median()
            far, near = sorted(medians.index, key=lambda each: -medians[each])
            lines.append(
                f"{CONTROLS[name][0]}: within the same L∞ budget {far} moves the images of “No defense” farther than "
                f"{near} in L2, {medians[far]:.2f} against {medians[near]:.2f} (medians, n = {len(both):,})"
                + ", where the paper has BIM's images as the more visible" * (far == "FGSM")
                + "."
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
            gaps = [
                (reported[a] - reported[b], means[a] - means[b])
                for a, b in combinations(attacks, 2)
                if f"{reported[a]:.1f}" != f"{reported[b]:.1f}" and f"{means[a]:.1f}" != f"{means[b]:.1f}"
            ]
            alike = sum(first * second > 0 for first, second in gaps)
            lines.append(
                f"Measured, {protocol}: {_order(means)} (n = {len(images):,}); {alike} of {len(gaps)} pairs of attacks "
                "that differ in both are in the reported order."
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
