"""The numbers that the paper prints, held against what was measured of their cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defendpp import paper, study, tables
from defendpp.findings import PROTOCOLS, right
from defendpp.intervals import Accuracy, MeanAccuracy
from defendpp.paper import Protocol, Row, Scale
from defendpp.study import TABLES, Place

CLAIMED = {"ours": "ours", "ours + GN": "ours + GN", "ours, fine-tuned": "ours", "ours, as released": "ours"}
"""Roles of Defend++, and the role whose published numbers each is held against: the released scripts fine-tune."""
WAYS = ("ours", "ours, fine-tuned", "ours, as released", "ours, alternating")
"""Roles of Defend++ without noise and with all its parts: the ways to train it."""
OTHERS = ("adv-fgsm", "adv-ddn", "adv-pgd", "comdefend")
"""Roles of the defences that the paper compares Defend++ with."""
STEPS = ("BIM", "PGD")
"""The attacks that the paper gives no budget for, and its scripts no code."""


@dataclass(frozen=True)
class Held:
    """A published number beside what was measured."""

    table: str
    row: Row
    column: str
    reported: float
    measured: Mapping[Protocol, Accuracy | MeanAccuracy]

    @property
    def is_printed(self) -> bool:
        """Whether the paper has this row, and not only one whose numbers it is held against."""
        return CLAIMED.get(self.row.role, self.row.role) == self.row.role

    def is_within(self, protocol: Protocol) -> bool:
        """Whether the number lies in the 95 % interval of what was measured, if it was."""
        return protocol in self.measured and _holds(self.measured[protocol], self.reported)

    def seeds(self, protocol: Protocol) -> int:
        """Of how many training seeds the interval is."""
        found = self.measured[protocol]
        return found.seeds if isinstance(found, MeanAccuracy) else 1

    def told(self, protocol: Protocol) -> str:
        """What was measured, in %."""
        return tables.percent(self.measured[protocol])

    def __str__(self) -> str:
        """The first cells of a line about it."""
        return f"| {_spaced(self.table)} | {self.row.name} | {self.column} | {self.reported:.2f} |"


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


def reproduced(every: Sequence[Held]) -> str:
    """Which published numbers lie in the 95 % interval of what was measured under either protocol: of Defend++ each,
    of all other rows how many; and what is printed of other defences under `STEPS`. In Markdown; empty of nothing.
    """
    if not every:
        return ""
    claimed = [each for each in every if each.row.role in CLAIMED]
    printed = [each for each in claimed if each.is_printed]
    lines = [
        f"The interval holds the published number of Defend++ under an attack in {within(printed, 'transfer')} under "
        f"the paper's protocol, and in {within(printed, 'white-box')} white-box. Of several seeds an interval may be "
        "tens of points wide and hold almost anything; of one it leaves out how much trainings differ, so that a "
        "perfect repetition would often miss it: neither word means much by itself. The paper has no fine-tuned rows, "
        "which its released scripts would give: they are held against its “ours”, and not counted.",
        "",
        "| | row | | reported | paper's protocol | within | white-box | within |",
        "|---|---|---|---:|---:|---|---:|---|",
        *(_line(each) for each in sorted(claimed, key=lambda each: each.table)),
    ]
    others = [each for each in every if each.row.role not in CLAIMED]
    return "\n".join([*lines, *_by_row(others), *_under_steps(under_steps(every))])


def within(cells: Sequence[Held], protocol: Protocol) -> str:
    """In how many of these cells of attacks the number lies within, by the number of training seeds measured."""
    measured = [each for each in cells if protocol in each.measured and each.column != "Clean"]
    counts = sorted({each.seeds(protocol) for each in measured}, reverse=True)
    told = []
    for count in counts:
        alike = [each for each in measured if each.seeds(protocol) == count]
        holds = sum(each.is_within(protocol) for each in alike)
        told.append(f"{holds} of {len(alike)} cells of {count} training seed{'s' * (count > 1)}")
    return " and ".join(told) or "no cell"


def under_steps(every: Sequence[Held]) -> list[Held]:
    """What the paper prints under `STEPS` of the defences that it compares Defend++ with, where both was measured."""
    return [
        each
        for each in every
        if each.row.role in OTHERS and each.column in STEPS and len(each.measured) == len(PROTOCOLS)
    ]


def below(cells: Sequence[Held]) -> list[Held]:
    """Where the printed number lies below the interval of the paper's protocol."""
    return [each for each in cells if each.reported < 100 * each.measured["transfer"].low]


def nearer(cells: Sequence[Held]) -> list[Held]:
    """Where it is nearer to what was measured white-box than to that of the paper's protocol."""
    return [
        each
        for each in cells
        if abs(each.reported - 100 * each.measured["white-box"].value)
        < abs(each.reported - 100 * each.measured["transfer"].value)
    ]


def tried(scale: Scale, place: Place) -> list[str]:
    """By data and attack what each way to train Defend++ without noise came to, where the published number does not
    lie in the interval of "ours"."""
    lines = []
    for name, data in {"table2": "MNIST", "table3": "CIFAR-10", "table4": "ImageNet"}.items():
        ways = [row for row in TABLES[name].rows if row.role in WAYS]
        for attack in ("FGSM", "BIM"):
            by_row = {row.name: right(name, row.name, [attack], "transfer", scale, place) for row in ways}
            found = {row: tables.estimate([*by_seed.values()]) for row, by_seed in by_row.items() if by_seed}
            reported = ways[0].published[attack]
            if "ours" in found and not _holds(found["ours"], reported):
                told = ", ".join(
                    f"“{row}” {tables.percent(each)} (training seed{'s' * (len(by_row[row]) > 1)} "
                    f"{', '.join(map(str, by_row[row]))}; n = {each.n:,})"
                    for row, each in found.items()
                )
                lines.append(f"{data}, {attack}: the paper has {reported:.2f}. {told}.")
    return lines


def larger_budget(scale: Scale, place: Place) -> str:
    """What BIM of half as much again leaves of Defend++ and of the other defences under the paper's protocol, beside
    what it leaves of the same networks at the usual budget, and what is printed."""
    told = []
    for row in (each for each in TABLES["variations"].rows if each.role in ("ours", *OTHERS)):
        more = right("variations", row.name, ["BIM 0.3"], "transfer", scale, place)
        usual = right("table2", row.name, ["BIM"], "transfer", scale, place)
        printed = next(each for each in TABLES["table2"].rows if each.name == row.name).published["BIM"]
        for seed in (each for each in more if each in usual):
            kept, before = (tables.percent(tables.estimate([each[seed]])) for each in (more, usual))
            n = len(more[seed])
            told.append(
                f"“{row.name}” {kept} instead of {before} (printed {printed:.2f}; training seed {seed}, n = {n:,})"
            )
    if not told:
        return ""
    return f"With a budget of 0.3 instead of 0.2 on MNIST, BIM under the paper's protocol leaves {', '.join(told)}."


def _by_row(cells: Sequence[Held]) -> list[str]:
    """How many published numbers of each row lie within."""
    lines = [
        "",
        "Of the other rows, how many of the numbers published of attacks lie within:",
        "",
        "| | row | paper's protocol | white-box | clean accuracy |",
        "|---|---|---|---|---|",
    ]
    for table, row in sorted({(each.table, each.row.name) for each in cells}):
        mine = [each for each in cells if (each.table, each.row.name) == (table, row)]
        attacked = " | ".join(_share(mine, protocol, clean=False) for protocol in PROTOCOLS)
        lines.append(f"| {_spaced(table)} | {row} | {attacked} | {_share(mine, 'transfer', clean=True)} |")
    return lines if cells else []


def _under_steps(cells: Sequence[Held]) -> list[str]:
    if not cells:
        return []
    return [
        "",
        f"Of the defences that the paper compares with, under {' and '.join(STEPS)}: {len(below(cells))} of "
        f"{len(cells)} printed numbers lie below the interval of the paper's protocol, and {len(nearer(cells))} are "
        "nearer to what was measured white-box. The scripts have no code for these attacks and the paper no budget; it "
        "prints “ComDefend” and “ComDefend-wb” apart.",
        "",
        "| | row | | reported | paper's protocol | white-box |",
        "|---|---|---|---:|---:|---:|",
        *(
            f"{each} {each.told('transfer')} | {each.told('white-box')} |"
            for each in sorted(cells, key=lambda each: each.table)
        ),
    ]


def _line(each: Held) -> str:
    told = (
        f"{each.told(protocol)} | {'yes' if each.is_within(protocol) else 'no'}" if protocol in each.measured else "– |"
        for protocol in PROTOCOLS
    )
    return f"{each} {' | '.join(told)} |"


def _holds(measured: Accuracy | MeanAccuracy, reported: float) -> bool:
    return 100 * measured.low <= reported <= 100 * measured.high


def _spaced(table: str) -> str:
    return table.replace("table", "table ")


def _share(cells: Sequence[Held], protocol: Protocol, *, clean: bool) -> str:
    """How many of these, of attacks or of clean images, lie within, and of how many that were measured."""
    measured = [each for each in cells if protocol in each.measured and (each.column == "Clean") == clean]
    return f"{sum(each.is_within(protocol) for each in measured)} of {len(measured)}" if measured else "–"
