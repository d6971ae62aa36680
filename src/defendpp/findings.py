"""What the study says, in sentences with paired tests: computed from records, nothing typed.

Two rows of a table are compared image by image within each training seed, and then over the seeds.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import mean
from typing import get_args

import pandas as pd

from defendpp import intervals, robustness, study, tables
from defendpp.paper import Protocol, Scale
from defendpp.study import TABLES, Place, cell

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
FLOOR = 0.01
"""Where neither of two rows has more than this share of images right, their difference tells nothing."""
MARGIN = 0.05
"""A difference is called none where its interval holds 0 and ends nearer to it than this, on both sides."""
WEAK = 0.5
"""Images of which their own source gets more than this share right are no attack to speak of."""
NONE, UNDECIDED = f"no difference beyond {100 * MARGIN:.0f} points", "undecided"
WORDS = ("higher", "lower", NONE, UNDECIDED)
"""What a difference comes to."""
TOGETHER = "all of these"
"""Several attacks as one."""
ENOUGH = 3
"""Training seeds of which a verdict is printed bold."""


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
    claim: str = ""
    """What the paper says of it, and where."""
    reading: str = ""
    """What has to be known to read the claim, and is not said in the paper."""


@dataclass(frozen=True)
class Contrast:
    """One row against another, over the seeds that both have."""

    difference: intervals.Difference | intervals.MeanDifference
    best: float
    """Accuracy of the better of the two."""
    seeds: int

    @property
    def word(self) -> str:
        """One of `WORDS`."""
        low, high = self.difference.low, self.difference.high
        # Of one pair interval and test may differ at the limit: a word asks for both.
        chance = isinstance(self.difference, intervals.Difference) and self.difference.p >= 0.05
        if (low > 0 or high < 0) and not chance:
            return "higher" if low > 0 else "lower"
        return NONE if max(-low, high) <= MARGIN else UNDECIDED

    @property
    def brief(self) -> str:
        """The difference in points and its interval."""
        value, low, high = (100 * each for each in (self.difference.value, self.difference.low, self.difference.high))
        return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"

    def __str__(self) -> str:
        told = f"both at most {100 * self.best:.1f} %" if self.best <= FLOOR else str(self.difference)
        return f"{told}, n = {self.difference.n:,}"


def right(
    table: str, row: str, columns: Sequence[str], protocol: Protocol, scale: Scale, place: Place
) -> "dict[int, pd.Series[bool]]":
    """Which images stayed right under all these, by training seed, for the seeds that were measured.

    Where columns are of different images, those that all have.
    """
    found: list[dict[int, pd.Series[bool]]] = []
    for name in columns:
        groups, radius = measurements(table, row, name, protocol, scale)
        by_seed = {seed: tables.right(group, place, radius) for seed, group in groups.items()}
        found.append({seed: values for seed, values in by_seed.items() if values is not None})
    shared = [seed for seed in found[0] if all(seed in each for each in found)]
    return {seed: pd.concat([each[seed] for each in found], axis=1, join="inner").all(axis=1) for seed in shared}


def on_part(
    table: str, row: str, everything: str, part: str, scale: Scale, place: Place
) -> tuple[intervals.Accuracy, intervals.Accuracy] | None:
    """How hard the images of column `part` are: white-box accuracy under the attack of column `everything`, on all
    images and on those of `part` alone. Of the first training seed that has both; None where none has."""
    whole, few = (right(table, row, [each], "white-box", scale, place) for each in (everything, part))
    for seed in sorted(set(whole) & set(few)):
        images = whole[seed]
        return intervals.accuracy(images.to_numpy()), intervals.accuracy(images[few[seed].index].to_numpy())
    return None


def measurements(
    table: str, row: str, column: str, protocol: Protocol, scale: Scale
) -> tuple[study.BySeed, float | None]:
    """`study.cell` of a row and a column by their names, under one protocol, and the column's radius if it has one."""
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
    `among` where these are given. Where one row was measured on more images, on those that both have of each seed.

    Raises `ValueError` where neither was measured on all images of the other.
    """
    first, second = (right(table, row, columns, protocol, scale, place) for row in (a, b))
    return paired(first, second, f"“{a}” and “{b}” of {table}", " and ".join(columns), among)


def paired(
    first: "Mapping[int, pd.Series[bool]]",
    second: "Mapping[int, pd.Series[bool]]",
    names: str,
    attacks: str,
    among: Collection[int] | None = None,
) -> Contrast | None:
    """The first less the second, each by training seed, as `right` gives them; None where no seed is common.

    Raises `ValueError`, with `names` and `attacks`, where neither was measured on all images of the other.
    """
    seeds = [seed for seed in first if seed in second and (among is None or seed in among)]
    if not seeds:
        return None
    pairs = [pd.concat([first[seed], second[seed]], axis=1, join="inner") for seed in seeds]
    if any(len(pair) < min(len(first[seed]), len(second[seed])) for seed, pair in zip(seeds, pairs, strict=True)):
        raise ValueError(f"{names} saw different images under {attacks}: measure them again")
    common = pd.concat(pairs, axis=1, join="inner").to_numpy()
    of_seeds = [common[:, i : i + 2] for i in range(0, 2 * len(seeds), 2)]
    by_seed = [intervals.paired_difference(both[:, 0], both[:, 1]) for both in of_seeds]
    best = max(float(share) for both in of_seeds for share in both.mean(axis=0))
    difference = by_seed[0] if len(by_seed) == 1 else intervals.mean_difference(by_seed)
    return Contrast(difference, best, len(by_seed))


@dataclass(frozen=True)
class Answer:
    """Of one pair of rows: what the differences amount to, and the differences."""

    pair: tuple[str, str]
    verdict: str
    differences: str
    seeds: int
    """0 where the verdict is that not all it needs was measured."""
    planned: int
    judged: Mapping[str, Contrast] = field(default_factory=dict)
    """By column what the verdict is of; of several attacks taken together there is one, `TOGETHER`."""
    weak: Collection[str] = ()
    """Columns whose images fool their own source less than half the time."""

    def __str__(self) -> str:
        if self.seeds > 1:
            so_far = f", so far of {self.seeds} of {self.planned} training seeds" * (self.seeds < self.planned)
            told = f"{self.bold}{so_far}"
        elif not self.seeds:
            told = self.verdict
        elif self.planned > 1:
            told = f"{self.verdict}, so far of one pair of networks, which is no verdict on the method"
        else:
            told = f"{self.verdict}, of this one pair of networks; other training seeds were not tried"
        return f"{self.compared}: {told}." + f" {self.differences}." * bool(self.differences)

    @property
    def bold(self) -> str:
        """The verdict, in bold type where it is of enough training seeds."""
        return f"**{self.verdict}**" if self.seeds >= ENOUGH else self.verdict

    @property
    def compared(self) -> str:
        """The two rows."""
        return "“{}” against “{}”".format(*self.pair)

    @property
    def decisive(self) -> str:
        """The differences that the verdict is of, where not both rows fell."""
        told = {name: found.brief for name, found in self.judged.items() if found.best > FLOOR}
        return "; ".join(f"{f'{name} ' * (len(self.judged) > 1)}{each}" for name, each in told.items())


def answers(question: Question, scale: Scale, place: Place) -> list[Answer]:
    """One for each pair."""
    return [_answer(question, a, b, scale, place) for a, b in question.pairs]


def in_short(asked: "Mapping[Question, Sequence[Answer]]") -> str:
    """The verdicts alone, in Markdown: a sentence and a table."""
    lines = [
        "The differences of each training seed, with their tests, follow below. Bold verdicts: of at least "
        f"{ENOUGH} training seeds; of two, hardly anything can be decided. One seed is one pair of networks, which may "
        "differ by chance of training alone, and no verdict on the method.",
        "",
        "| | compared | attacker | verdict | first less second, points | training seeds |",
        "|---|---|---|---|---|---|",
    ]
    for question, found in asked.items():
        attacker = "paper's protocol" if question.protocol == "transfer" else "white-box"
        for number, each in enumerate(each for each in found if each.seeds):
            verdict = f"{'this pair: ' * (each.seeds == 1)}{each.bold}"
            seeds = f"{each.seeds} of {each.planned}" if each.seeds < each.planned else str(each.seeds)
            cells = (question.text * (number == 0), each.compared, attacker, verdict, each.decisive, seeds)
            lines.append(f"| {' | '.join(cells)} |")
    unanswered = [
        f"{question.text} {'; '.join(each.compared for each in found if not each.seeds)}"
        for question, found in asked.items()
        if not all(each.seeds for each in found)
    ]
    if unanswered:
        lines += ["", "Not measured, or not enough for a verdict:", "", *(f"- {each}." for each in unanswered)]
    return "\n".join(lines)


def _answer(question: Question, a: str, b: str, scale: Scale, place: Place) -> Answer:
    def compared(*columns: str, among: Collection[int] | None = None) -> Contrast | None:
        return contrast(question.table, a, b, columns, question.protocol, scale, place, among)

    cells = [
        [measurements(question.table, row, name, question.protocol, scale)[0] for row in (a, b)]
        for name in question.columns
    ]
    done = dict(zip(question.columns, (_seeds_of_both(pair, place) for pair in cells), strict=True))
    shared = _judged_seeds(list(done.values()), together=question.together)
    other = [] if question.together else [name for name in question.columns if done[name] and not shared <= done[name]]
    each = {name: compared(name, among=None if name in other else shared) for name in question.columns}
    beside = {name: compared(name, among=shared) or compared(name) for name in question.beside}
    together = {TOGETHER: compared(*question.columns, among=shared)} if question.together else {}
    shifts = _shifts(question, a, b, scale, place, shared)
    told = [
        f"{name} {found}{_reported(question, a, b, name)}"
        for name, found in {**each, **together, **beside}.items()
        if found is not None
    ]
    if shifts:
        names = " or ".join(question.nearest)
        told.append(f"L2 that {names} needs, median of the paired differences: {_mean(shifts)}")
    shown = [name for name, found in each.items() if found is not None and question.protocol == "transfer"]
    weak = left_by_source(question.table, a, shown, scale, place)
    if weak:
        shares = ", ".join(f"{100 * share:.1f} % under {_listed([name])}" for name, share in weak.items())
        told.append(f"of these images their own source gets right {shares}: little can transfer")
    judged = {name: found for name, found in (together or each).items() if found is not None and name not in other}
    missing = [name for name, found in each.items() if found is None]
    yet = f"not measured yet: {_listed(missing)}" if missing else ""
    if other:
        yet += f"{'; ' * bool(yet)}not judged, of other training seeds: {_listed(other)}"
    planned = min(len(seeds) for pair in cells for seeds in pair)
    if not judged:
        return Answer((a, b), yet if len(missing) < len(each) else "not measured yet", "; ".join(told), 0, planned)
    parts = _words(judged, named=not question.together)
    seeds = min(found.seeds for found in judged.values())
    if 0 < len(shifts) < seeds:
        parts.append("in L2 not judged, of fewer training seeds")
    elif shifts or (question.nearest and not any(found.best > FLOOR for found in judged.values())):
        parts.append(_reach(shifts))
    if weak:
        parts.append(f"images of {_listed(weak)} fool their own source less than half the time")
    price = beside.get("Clean")
    if price is not None and price.seeds == seeds and price.word in WORDS[:2]:
        parts.append(f"Clean {100 * price.difference.value:+.1f} points")
    verdict = "; ".join(parts) + f" ({yet})" * bool(yet)
    return Answer((a, b), verdict, "; ".join(told), seeds, planned, judged, tuple(weak))


def left_by_source(table: str, row: str, columns: Sequence[str], scale: Scale, place: Place) -> dict[str, float]:
    """How many of the images shown to `row` their own source gets right, where it is most: then the attack failed."""
    left = {}
    for name in columns:
        groups, _ = measurements(table, row, name, "transfer", scale)
        own = [tables.right([replace(each, target=each.source) for each in group], place) for group in groups.values()]
        shares = [float(each.mean()) for each in own if each is not None]
        if shares and mean(shares) > WEAK:
            left[name] = mean(shares)
    return left


def _seeds_of_both(rows: Sequence[study.BySeed], place: Place) -> set[int]:
    """The training seeds of which a column has both rows."""
    done = ({seed for seed, group in each.items() if all(job.is_done(place) for job in group)} for each in rows)
    return set.intersection(*done)


def _judged_seeds(columns: Sequence[set[int]], *, together: bool) -> set[int]:
    """The training seeds that a verdict is of: one must not be of one seed here and of another there.

    Taken together, columns have those in common. Each by itself, it is the seeds of the column that has the most, and
    columns that lack one of them are not judged: to discard a seed that was measured could turn a verdict around.
    """
    found = [seeds for seeds in columns if seeds]
    if not found:
        return set()
    return set.intersection(*found) if together else max(found, key=len)


def _words(judged: Mapping[str, Contrast], *, named: bool) -> list[str]:
    """What the contrasts come to, with the names of their columns."""
    words = {name: each.word for name, each in judged.items() if each.best > FLOOR}
    by_word = {word: [name for name, its in words.items() if its == word] for word in WORDS}
    parts = [f"{word} under {_listed(names)}" if named else word for word, names in by_word.items() if names]
    fell = [name for name in judged if name not in words]
    if fell:
        parts.append(f"both keep at most {100 * FLOOR:.0f} %" + f" under {_listed(fell)}" * named)
    return parts


def _reach(shifts: Sequence[intervals.Shift]) -> str:
    """How far the nearer of the minimal-norm attacks must go on the first, of several training seeds as a word."""
    if not shifts:
        return "in L2 not measured yet"
    found = _mean(shifts)
    if isinstance(found, intervals.Shift):
        return f"an attack in L2 must go {found.median:+.2f} (median)"
    if found.low <= 0 <= found.high:
        return "no clear difference in L2"
    return f"an attack in L2 must go {'farther' if found.low > 0 else 'less far'}"


def _mean(shifts: Sequence[intervals.Shift]) -> intervals.Shift | intervals.MeanShift:
    return shifts[0] if len(shifts) == 1 else intervals.mean_shift(shifts)


def _listed(names: Iterable[str]) -> str:
    """Names that may have commas of their own."""
    return ", ".join(f"“{name}”" if "," in name else name for name in names)


def _reported(question: Question, a: str, b: str, column: str) -> str:
    """The paper's difference, where it has both rows."""
    published = {row.name: row.published.get(column) for row in TABLES[question.table].rows}
    first, second = published[a], published[b]
    if first is None or second is None or question.protocol != "transfer":
        return ""
    return f" (paper {first - second:+.2f})"


def _shifts(
    question: Question, a: str, b: str, scale: Scale, place: Place, among: Collection[int]
) -> list[intervals.Shift]:
    """How much farther the nearer of the minimal-norm attacks must go on a than on b, by training seed."""
    if not question.nearest:
        return []
    first, second = (_distances(question, row, scale, place) for row in (a, b))
    shifts = []
    for seed in [seed for seed in first if seed in second and seed in among]:
        both = first[seed].index.intersection(second[seed].index)
        if len(both):
            shifts.append(intervals.median_shift(first[seed][both].to_numpy(), second[seed][both].to_numpy()))
    return shifts


def _distances(question: Question, row: str, scale: Scale, place: Place) -> "dict[int, pd.Series[float]]":
    """By training seed that all of these attacks were measured of: the L2 distance of the nearest for each image that
    is right when clean, infinite if none."""
    found: dict[int, list[pd.Series[float]]] = {}
    for name in question.nearest:
        groups, _ = measurements(question.table, row, name, "white-box", scale)
        for seed, group in groups.items():
            frames = tables.outcomes(group, place)
            if frames is not None:
                mine = found.setdefault(seed, [])
                right = [each[each["clean_prediction"] == each["label"]] for each in frames]
                mine.append(pd.concat([each["l2"].where(each["success"], inf) for each in right], axis=1).min(axis=1))
    nearest = {seed: pd.concat(each, axis=1, join="inner").min(axis=1) for seed, each in found.items()}
    return {seed: values for seed, values in nearest.items() if len(found[seed]) == len(question.nearest)}


def failures(name: str, scale: Scale, place: Place) -> list[str]:
    """White-box attacks of a table that left more images right than another at the same budget, or that left images
    right although they may go any distance: they failed there.

    By row, over the training seeds that both attacks were measured of. The other is an attack on the network itself, or
    images of the paper's protocol; one step may leave more right than many, and is compared with one step. Only what is
    clear of chance, from a point on. That is the chance of images alone: what another attack breaks on these networks
    is broken, whatever it would do on others. So an interval is the mean of the seeds' own.
    """
    table = TABLES[name]
    known = robustness.attacks(table.data)
    budgets = {
        column.name: (known[column.attack].norm, known[column.attack].epsilon)
        for column in table.columns
        if column.attack != "Clean"
    }
    lines = []
    for row in (each for each in table.rows if each.role):
        shown = {
            (column, protocol): right(name, row.name, [column], protocol, scale, place)
            for protocol in PROTOCOLS
            for column in budgets
        }
        told = []
        for column, (norm, epsilon) in budgets.items():
            own = shown[column, "white-box"]
            if not own:
                continue
            if epsilon is None:
                kept = [intervals.accuracy(each.to_numpy()) for each in own.values()]
                if mean(each.low for each in kept) > FLOOR:
                    share = 100 * mean(each.value for each in kept)
                    told.append(f"{column} leaves {share:.1f} % at any distance ({_size(kept)})")
                continue
            rivals = {
                f"{by} made on the source" if how == "transfer" else by: other
                for (by, how), other in shown.items()
                if budgets[by] == (norm, epsilon) and (column != "FGSM" or by == "FGSM")
            }
            told += _beaten(column, own, rivals)
        if told:
            lines.append(f"“{row.name}”: {'; '.join(told)}.")
    return lines


def _beaten(
    column: str, own: "Mapping[int, pd.Series[bool]]", rivals: "Mapping[str, Mapping[int, pd.Series[bool]]]"
) -> list[str]:
    """The rival that breaks the most images more than `own`, of those that both attacked, if clearly more.

    All by training seed; of those that both have.
    """
    found = []
    for by, rival in rivals.items():
        pairs = [pd.concat([own[seed], rival[seed]], axis=1, join="inner").to_numpy() for seed in own if seed in rival]
        gains = [intervals.paired_difference(each[:, 0], each[:, 1]) for each in pairs]
        gain = mean(each.value for each in gains) if gains else 0.0
        if gain >= FLOOR and mean(each.low for each in gains) > 0:
            kept = mean(each[:, 0].mean() for each in pairs)
            told = f"{column} leaves {100 * kept:.1f} %, {by} {100 * (kept - gain):.1f} % ({_size(gains)})"
            found.append((gain, told))
    return [max(found)[1]] if found else []


def _size(by_seed: "Sequence[intervals.Accuracy | intervals.Difference]") -> str:
    """How many images, and training seeds where there are several."""
    return f"n = {by_seed[0].n:,}" + f", {len(by_seed)} seeds" * (len(by_seed) > 1)
