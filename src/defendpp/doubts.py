"""Doubts: signs, in records and in what checks found, that a robust accuracy says less than it seems to.

Each is a sentence that begins with "Doubt:"; a report prints them under its tables.
"""

import json
from collections.abc import Mapping, Sequence
from typing import cast

import pandas as pd

from defendpp import intervals
from defendpp import records as rec

CHECKS = "checks, which attack with PGD whatever was chosen here"
TELLING = 0.05
"""Share of its distance by which a minimal-norm attack may miss the nearest image that another found."""


def in_checks(checks: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """What `defendpp.checks` found of each network, by name, a sentence each; one that failed is a doubt.

    The checks have a PGD of their own: they tell of the network, and not of the attacks that were chosen.
    """
    said = []
    for network, found in checks.items():
        failed, open_ = ([each for each in found if each["verdict"] == verdict] for verdict in ("failed", "not judged"))
        if failed:
            reasons = "; ".join(f"“{each['name']}”: {each['detail']}" for each in failed)
            said.append(f"Doubt: on “{network}” {len(failed)} of {len(found)} {CHECKS}, fail: {reasons}.")
        else:
            rest = "; ".join(f"“{each['name']}” was not judged: {each['detail']}" for each in open_)
            said.append(f"“{network}” fails none of {len(found)} {CHECKS}{rest and '; ' + rest}.")
    return said


def in_records(records: pd.DataFrame) -> list[str]:
    """Signs that an attack was too weak on a network (Carlini et al. 2019, "On evaluating adversarial robustness").

    At the same budget, an attack through the network's own gradients must not leave more images right than another one,
    nor than images made on another network; one step, and search without gradients, may. A minimal-norm attack is taken
    at every budget of its norm that another attack had, must reach every image, and not go farther than another. Where
    the 95 % interval of a difference in the wrong direction excludes 0, the largest is reported; so are budgets at
    which one step or search was all. Before that come networks that are not shown to be better than naming the
    commonest class.
    """
    lost = [*_failed_of_any_size(records), *_farther_than_needed(records)]
    found: list[str] = []
    compared = set()
    records = pd.concat([records, *_minimal_at_budgets(records)])
    white = records[(records["knowledge"] == "white-box") & records["epsilon"].notna()]
    for _, rows in white.groupby(["network", "attack", "norm", "epsilon"], sort=False):
        network, attack, norm = (str(rows[name].iloc[0]) for name in ("network", "attack", "norm"))
        epsilon = float(rows["epsilon"].iloc[0])
        same = records[(records["network"] == network) & (records["norm"] == norm) & (records["epsilon"] == epsilon)]
        own = (
            (same["knowledge"] == "white-box")
            & (same["attack"] != attack)
            & (not _is_weak(attack, str(rows["settings"].iloc[0])))
        )
        made_elsewhere = (same["knowledge"] == "transfer") & (same["attack"] == attack) & (same["source"] != network)
        others = {}
        for _, images in same[own | made_elsewhere].groupby(["knowledge", "source", "attack"], sort=False):
            by, knowledge, source = (str(images[name].iloc[0]) for name in ("attack", "knowledge", "source"))
            told = "one step of FGSM" if by == "fgsm" and knowledge == "white-box" else rec.attack_name(by)
            others[told + (f" from “{source}”" if knowledge == "transfer" else "")] = _right(images)
            if set(images["image"]) & set(rows["image"]):
                compared.add((network, norm, epsilon, frozenset({attack, by}), source))
        clearest = _clearest_gain(_right(rows), others)
        if clearest:
            stronger, gain = clearest
            found.append(
                f"Doubt: on “{network}”, white-box {rec.attack_name(attack)} at {rec.NORM_NAMES[norm]} ≤ {epsilon:g} "
                f"leaves more images right than {stronger} ({gain}): it was too weak, and its number is too high."
            )
    for (name, norm_, size), rows in white.groupby(["network", "norm", "epsilon"], sort=False):
        attacks = rows.drop_duplicates(["attack", "settings"])
        if all(_is_weak(str(one), str(how)) for one, how in zip(attacks["attack"], attacks["settings"], strict=True)):
            tried = " and ".join(dict.fromkeys(rec.attack_name(str(one)) for one in attacks["attack"]))
            found.append(
                f"Doubt: on “{name}”, nothing but one step or random search ({tried}) was tried at "
                f"{rec.NORM_NAMES[str(norm_)]} ≤ {cast('float', size):g}: what withstands it says nothing of stronger "
                "attacks."
            )
    found += lost
    n = len(compared)
    if n and not found:
        found = [
            f"In {n} paired comparison{'s' * (n > 1)} at the same budget, neither another attack nor transferred "
            "images did better, beyond chance, than one through the network's own gradients."
        ]
    return [*_at_chance(records), *found]


def overlooked(records: pd.DataFrame, others: pd.DataFrame, budgets: Mapping[str, float]) -> list[str]:
    """Where `others`, records that a page does not show, broke images that by those it shows withstand everything."""
    found = []
    for (network_id, data, split), shown in records.groupby(["network_id", "data", "split"], sort=False):
        more = others[(others["network_id"] == network_id) & (others["data"] == data) & (others["split"] == split)]
        for norm, budget in budgets.items():
            try:
                here = rec.worst_case(shown, norm=norm, budget=budget)
            except ValueError:  # not attacked in this norm
                continue
            left = intervals.accuracy((here & ~here.index.isin(rec.fallen(more, norm=norm, budget=budget))).to_numpy())
            right = intervals.accuracy(here.to_numpy())
            if left.correct < right.correct:
                found.append(
                    f"Doubt: other records beside these leave “{shown['network'].iloc[0]}” at most {left} of n = "
                    f"{left.n} images at {rec.NORM_NAMES[norm]} ≤ {budget:g}, where those shown leave {right}."
                )
    return found


def _minimal_at_budgets(records: pd.DataFrame) -> list[pd.DataFrame]:
    """What each white-box minimal-norm run leaves right within each budget that the network met in its norm."""
    white = records[records["knowledge"] == "white-box"]
    made = []
    for (network, norm), rows in white[white["epsilon"].isna()].groupby(["network", "norm"], sort=False):
        budgets = white.loc[(white["network"] == network) & (white["norm"] == norm), "epsilon"].dropna().unique()
        made += [rows.assign(epsilon=budget, correct=rec.reach(rows) > budget) for budget in budgets]
    return made


def _is_weak(attack: str, settings: str) -> bool:
    """Whether what an attack leaves right tells nothing by itself: one step, or search without gradients."""
    is_one_step = attack in ("bim", "pgd") and json.loads(settings or "{}").get("steps") == 1
    return attack in ("fgsm", "square") or is_one_step


def _failed_of_any_size(records: pd.DataFrame) -> list[str]:
    """Minimal-norm attacks that found nothing on the network itself, although they may go as far as they like."""
    found = []
    for (network, attack), rows in _of_any_size(records).groupby(["network", "attack"], sort=False):
        failed = int((~rows["success"]).sum())
        if failed > max(1, 0.02 * len(rows)):
            found.append(
                f"Doubt: on “{network}”, {rec.attack_name(str(attack))} found nothing for {failed} of {len(rows)} "
                "images, although it may go any distance: it failed there, and its distance is too large."
            )
    return found


def _farther_than_needed(records: pd.DataFrame) -> list[str]:
    """Minimal-norm attacks that another one undercuts, by more than `TELLING`, on the same images of a network."""
    found = []
    for (network, norm), rows in _of_any_size(records).groupby(["network", "norm"], sort=False):
        distances = {str(attack): _distances(each) for attack, each in rows.groupby("attack", sort=False)}
        for attack, own in distances.items():
            shifts = {}
            for by, other in distances.items():
                common = own.index.intersection(other.index)
                if by != attack and len(common):
                    shifts[by] = intervals.median_shift(own[common].to_numpy(), other[common].to_numpy())
            if not shifts:
                continue
            by, shift = max(shifts.items(), key=lambda each: each[1].low)
            if shift.low > TELLING * distances[by].median():
                found.append(
                    f"Doubt: on “{network}”, {rec.attack_name(attack)} goes farther than {rec.attack_name(by)} "
                    f"({rec.NORM_NAMES[str(norm)]} {shift}): it does not find the nearest adversarial images, and its "
                    "distance is too large."
                )
    return found


def _distances(rows: pd.DataFrame) -> "pd.Series[float]":
    """By image, the least of several ways past a purifier."""
    return pd.Series(rec.reach(rows), index=rows["image"]).groupby(level=0).min()


def _of_any_size(records: pd.DataFrame) -> pd.DataFrame:
    """What white-box minimal-norm attacks did on images that are right when clean."""
    is_minimal = (records["knowledge"] == "white-box") & records["epsilon"].isna()
    return records[is_minimal & (records["clean_prediction"] == records["label"])]


def _clearest_gain(
    own: "pd.Series[bool]", others: "Mapping[str, pd.Series[bool]]"
) -> tuple[str, intervals.Difference] | None:
    """The other attack that leaves the most images fewer right than `own`, of those that both attacked, and how many.

    Each says by image which stayed right. None where no 95 % interval excludes 0.
    """
    found = {}
    for name, other in others.items():
        both = own.index.intersection(other.index)
        if not both.empty:
            gain = intervals.paired_difference(own[both].to_numpy(), other[both].to_numpy())
            if gain.low > 0:
                found[name] = gain
    return max(found.items(), key=lambda each: each[1].value) if found else None


def _right(run: pd.DataFrame) -> "pd.Series[bool]":
    return run.set_index("image")["correct"]


def _at_chance(records: pd.DataFrame) -> list[str]:
    clean = records[records["knowledge"] == "clean"]
    found = []
    for network, rows in clean.groupby("network", sort=False):
        right = intervals.accuracy(rows["correct"].to_numpy())
        guess = intervals.chance(rows["label"].to_numpy())
        if guess == 1:
            found.append(
                f"Doubt: all n = {right.n} images are of one class, so that “{network}” cannot be told from a network "
                "that always names it."
            )
        elif right.low <= guess:
            found.append(
                f"Doubt: “{network}” is not shown to be better than chance on clean images ({right} of n = {right.n}; "
                f"the commonest class alone is {100 * guess:.1f} %): what it withstands says nothing."
            )
    return found
