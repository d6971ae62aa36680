"""Tables of the study: reported beside measured, cell by cell, from records alone. No network is loaded.

Each row has three lines: what the paper printed; what was measured under its protocol, transfer; and white-box. A cell
without a number says why in a note.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow.parquet as pq

from defendpp import records
from defendpp.paper import TABLES, Column, Row, Scale
from defendpp.records import Accuracy, MeanAccuracy
from defendpp.study import Measurement, Place, cell

if TYPE_CHECKING:
    from rich.table import Table as RichTable

LINES = ("reported", "transfer", "white-box")
REASONS = {
    "paper": "not in the paper",
    "source": "images of another network are a transfer by definition",
    "wb": "the bare classifier is attacked on reformed images and tested without ComDefend, which is one protocol",
    "open": "measured under transfer only",
    "missing": "not measured yet",
    "clean": "the same as above: no attack",
}


@dataclass(frozen=True)
class Cell:
    """One number of a table, or why there is none."""

    text: str
    reason: str = ""
    """A key of `REASONS`, where there is no number."""


@dataclass(frozen=True)
class Printed:
    """A table, ready to be printed."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Cell]]]
    """Name, line, cells."""
    note: str


def outcome(measurement: Measurement, place: Place) -> pd.DataFrame | None:
    """What became of each image, indexed by image: correct, success, l2, ...; None where it was not measured yet."""
    path = measurement.file(place)
    if not path.exists():
        return None
    columns = ["image", "correct", "clean_prediction", "label", "success", "norm", "l2", "linf"]
    read: pd.DataFrame = pq.ParquetFile(path).read(columns).to_pandas()
    return read.set_index("image").sort_index()


def right(alternatives: Sequence[Measurement], place: Place) -> "pd.Series[bool] | None":
    """Whether each image stayed right under all of these; None where one of them was not measured yet."""
    outcomes = [outcome(each, place) for each in alternatives]
    if any(each is None for each in outcomes):
        return None
    return pd.concat([each["correct"] for each in outcomes if each is not None], axis=1).all(axis=1)


def by_seed(measurements: Sequence[Sequence[Measurement]], place: Place) -> "list[pd.Series[bool]]":
    """`right` for each seed that was measured."""
    return [values for values in (right(each, place) for each in measurements) if values is not None]


def estimate(measured: "Sequence[pd.Series[bool]]") -> Accuracy | MeanAccuracy:
    """Accuracy, over the seeds where there are several."""
    if len(measured) == 1:
        return records.accuracy(measured[0].to_numpy())
    return records.mean_accuracy([each.to_numpy() for each in measured])


def printed(name: str, scale: Scale, place: Place) -> Printed:
    """A table of the paper with what was measured so far. Raises `KeyError` for a name that is no table's."""
    table = TABLES[name]
    rows = []
    numbers: list[tuple[int, int]] = []
    for row in table.rows:
        lines: dict[str, list[Cell]] = {line: [] for line in LINES}
        for column in table.columns:
            value = row.published.get(column.name)
            lines["reported"].append(Cell("", "paper") if value is None else Cell(f"{value:.2f}"))
            for line, measurements in zip(LINES[1:], cell(table, row, column, scale), strict=True):
                lines[line].append(_measured(measurements, row, column, line, place, numbers))
        rows += [(row.name if line == LINES[0] else "", line, cells) for line, cells in lines.items()]
    return Printed(table.title, [column.name for column in table.columns], rows, _note(rows, numbers, scale))


def _measured(
    measurements: Sequence[Sequence[Measurement]],
    row: Row,
    column: Column,
    line: str,
    place: Place,
    numbers: list[tuple[int, int]],
) -> Cell:
    if not measurements:
        if column.attack == "Clean":
            return Cell("", "clean")
        return Cell("", "wb" if row.role == "comdefend-wb" else "source" if column.in_paper else "open")
    measured = by_seed(measurements, place)
    if not measured:
        return Cell("", "missing")
    found = estimate(measured)
    numbers.append((found.n, len(measurements)))
    text = f"{100 * found.value:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"
    if len(measured) < len(measurements):
        text += f", {len(measured)} of {len(measurements)} seeds"
    attack = measurements[0][0].attack
    if line == "white-box" and attack is not None and attack.epsilon is None:
        rows = [
            found for group in measurements for found in (outcome(each, place) for each in group) if found is not None
        ]
        text += f", median {records.median_distance(pd.concat(rows, ignore_index=True)).median:.2f}"
    return Cell(text)


def _note(rows: Sequence[tuple[str, str, Sequence[Cell]]], numbers: Sequence[tuple[int, int]], scale: Scale) -> str:
    images = sorted({n for n, _ in numbers}, reverse=True)
    note = f"Accuracy in %. Measured at “{scale}” scale, with its 95 % interval"
    note += (
        f", on {' or '.join(f'{n:,}' for n in images)} test images (fewer where an attack is dear)" if images else ""
    )
    if any(seeds > 1 for _, seeds in numbers):
        note += "; mean over three training seeds where a row has three"
    note += (
        ". “median”: of the L2 distance that a minimal-norm attack needed. The line “transfer” is the paper's protocol."
    )
    reasons = dict.fromkeys(each.reason for _, _, cells in rows for each in cells if each.reason)
    if reasons:
        note += " No number: " + "; ".join(f"{_mark(reason)} {REASONS[reason]}" for reason in reasons) + "."
    return note


def _mark(reason: str) -> str:
    return "abcdefgh"[list(REASONS).index(reason)] + ")"


def _text(each: Cell) -> str:
    return each.text or f"– {_mark(each.reason)}"


def markdown(table: Printed) -> str:
    """The table in Markdown, with its note, without its title."""
    lines = [
        f"| | | {' | '.join(table.columns)} |",
        "|---|---" + "|---:" * len(table.columns) + "|",
        *(f"| {name} | {line} | {' | '.join(map(_text, cells))} |" for name, line, cells in table.rows),
    ]
    return "\n".join([*lines, "", table.note]) + "\n"


def terminal(table: Printed) -> "RichTable":
    """The table for a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(title=Text(table.title, style="bold"), caption=Text(table.note), box=box.SIMPLE_HEAD, padding=0)
    made.add_column("", min_width=10)
    made.add_column("")
    for name in table.columns:
        made.add_column(Text(name), justify="right")
    for name, line, cells in table.rows:
        texts = [Text(_text(each).replace(" (", "\n(").replace(", median", "\nmedian")) for each in cells]
        made.add_row(Text(name), Text(line), *texts, end_section=line == LINES[-1])
    return made
