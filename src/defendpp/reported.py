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
LARGER = "BIM 0.3"
"""The column of a larger budget than the paper gives for FGSM."""


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
    lines += _by_row([each for each in every if each.row.role not in CLAIMED])
    return "\n".join([*lines, *_unreached(misfits(every), scale, place)])


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


def _unreached(cells: Sequence[Held], scale: Scale, place: Place) -> list[str]:
    """`misfits`, and what is left of their rows under a larger budget."""
    if not cells:
        return []
    lines = [
        "",
        "Published numbers that what was measured under the paper's protocol does not reach, and white-box accuracy "
        "does. Either these were not made as in its scripts, which have no code for BIM and PGD, or with other budgets "
        "than ours, of which the paper says nothing either:",
        "",
        "| | row | | reported | paper's protocol | white-box |",
        "|---|---|---|---:|---:|---:|",
        *(
            f"| {_spaced(each.table)} | {each.row.name} | {each.column} | {each.reported:.2f} | "
            f"{each.told('transfer')} | {each.told('white-box')} |"
            for each in sorted(cells, key=lambda each: each.table)
        ),
    ]
    there = {row.name for row in TABLES["variations"].rows}
    told = [
        f"“{name}” {tables.percent(tables.estimate([*by_seed.values()]))}"
        for name in dict.fromkeys(each.row.name for each in cells if each.row.name in there)
        if (by_seed := right("variations", name, [LARGER], "transfer", scale, place))
    ]
    if told:
        lines += ["", f"Under {LARGER}, half as much again, and the paper's protocol: {', '.join(told)}."]
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
