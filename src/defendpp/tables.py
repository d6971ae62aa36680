"""Tables of the study: reported beside measured, cell by cell, from records alone. No network is loaded.

Each row has three lines: what the paper printed; what was measured under its protocol; and white-box. Beyond the paper
there are fewer. A cell without a number says why in a note.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow.parquet as pq

from defendpp import intervals, records, study
from defendpp.intervals import Accuracy, MeanAccuracy
from defendpp.paper import Column, Row, Scale, Table
from defendpp.study import TABLES, Measurement, Place, cell

if TYPE_CHECKING:
    from rich.table import Table as RichTable

LINES = ("reported", "paper's protocol", "white-box")
REASONS = {
    "paper": "not in the paper",
    "source": "images made on another network are not white-box",
    "own": "the images were made on this very network: see white-box",
    "wb": "the bare classifier is attacked on reformed images and tested on them without ComDefend, which is one "
    "protocol; clean images are tested with it",
    "open": "not measured under this protocol",
    "quoted": "quoted by the paper from Jia et al. (2019), at L∞ 16/255",
    "missing": "not measured yet",
    "clean": "the same as above: no attack",
}


@dataclass(frozen=True)
class Cell:
    """One number of a table, or why there is none."""

    text: str
    reason: str = ""
    """A key of `REASONS`, where there is no number."""
    n: int | None = None
    """Images, where it was measured."""
    seeds: int = 0
    """Training seeds, where it was measured."""


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
    return _outcome(path, path.stat().st_mtime_ns) if path.exists() else None


@lru_cache(maxsize=256)  # a page asks for the same cell many times; not all, which would be gigabytes
def _outcome(path: Path, written: int) -> pd.DataFrame:
    """Of the file as it was `written` then; to be left as it is."""
    columns = ["image", "correct", "clean_prediction", "label", "success", "norm", "knowledge", "l2", "linf"]
    read: pd.DataFrame = pq.ParquetFile(path).read(columns).to_pandas()
    return read.set_index("image").sort_index()


def check_weights(measurements: Iterable[Measurement], place: Place) -> None:
    """Refuse records that are of several sets of weights for one recipe, as after training it again elsewhere."""
    seen: dict[str, tuple[str, Measurement]] = {}
    for each in measurements:
        if each.through == "bare" or not each.file(place).exists():
            continue
        first = pq.ParquetFile(each.file(place)).read(["network_id", "source_id"]).slice(0, 1).to_pylist()[0]
        for subject, id_ in ((each.target, first["network_id"]), (each.source, first["source_id"])):
            known, by = seen.setdefault(subject.recipe.hash, (id_, each))
            if id_ not in (known, ""):
                raise ValueError(
                    f"records of {subject} are of two sets of weights, {known} ({by.file(place).name}) and {id_} "
                    f"({each.file(place).name}): remove the ones or the others"
                )


def outcomes(alternatives: Sequence[Measurement], place: Place) -> list[pd.DataFrame] | None:
    """`outcome` of each; None where one of them was not measured yet."""
    frames = [outcome(each, place) for each in alternatives]
    found = [frame for frame in frames if frame is not None]
    return found if len(found) == len(frames) else None


def stayed_right(alternatives: Sequence[pd.DataFrame], radius: float | None = None) -> "pd.Series[bool]":
    """Whether each image stayed right under all of these outcomes; or is certified beyond an L2 radius.

    Raises `ValueError` where they are not of the same images.
    """
    if any(not each.index.equals(alternatives[0].index) for each in alternatives):
        raise ValueError("what was measured of a cell is of different images: measure it again")
    reached = [each["correct"] if radius is None else each["correct"] & (each["l2"] > radius) for each in alternatives]
    return pd.concat(reached, axis=1).all(axis=1)


def right(alternatives: Sequence[Measurement], place: Place, radius: float | None = None) -> "pd.Series[bool] | None":
    """`stayed_right` under all of these; None where one of them was not measured yet."""
    found = outcomes(alternatives, place)
    return None if found is None else stayed_right(found, radius)


def estimate(measured: "Sequence[pd.Series[bool]]") -> Accuracy | MeanAccuracy:
    """Accuracy, over the seeds where there are several."""
    if len(measured) == 1:
        return intervals.accuracy(measured[0].to_numpy())
    return intervals.mean_accuracy([each.to_numpy() for each in measured])


def percent(found: Accuracy | MeanAccuracy) -> str:
    """In %, with its interval, as tables print it."""
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def printed(name: str, scale: Scale, place: Place) -> Printed:
    """A table of the paper with what was measured so far. Raises `KeyError` for a name that is no table's."""
    table = TABLES[name]
    check_weights(study.measurements(name, scale), place)
    shown = _lines(table)
    rows = []
    for row in table.rows:
        lines: dict[str, list[Cell]] = {line: [] for line in LINES}
        usual = _usual(row.role, table, scale)
        for column in table.columns:
            value = row.published.get(column.name)
            lines["reported"].append(Cell("", "paper") if value is None else Cell(f"{value:.2f}"))
            for line, measurements in zip(LINES[1:], cell(table, row, column, scale), strict=True):
                lines[line].append(_measured(measurements, row, column, line, usual, place))
        rows += [(row.name if line == shown[0] else "", line, lines[line]) for line in shown]
    return Printed(table.title, [column.name for column in table.columns], rows, _note(rows, table, scale))


def _usual(role: str, table: Table, scale: Scale) -> tuple[int, ...]:
    """Training seeds of a row of this role that has none of its own."""
    return study.seeds(Row("", role, {}), table, scale)


def _lines(table: Table) -> list[str]:
    """Those of `LINES` that say anything: a table beyond the paper has nothing to report and one protocol."""
    has = {
        LINES[0]: any(row.published for row in table.rows),
        LINES[1]: any("transfer" in column.protocols for column in table.columns),
        LINES[2]: True,
    }
    return [line for line in LINES if has[line]]


def _measured(
    measurements: study.BySeed,
    row: Row,
    column: Column,
    line: str,
    usual: Sequence[int],
    place: Place,
) -> Cell:
    if not measurements:
        if not row.role:
            return Cell("", "quoted")
        if column.attack == "Clean":
            return Cell("", "clean")
        if row.role == "comdefend-wb" and len(column.protocols) == 2:
            return Cell("", "wb")
        return Cell("", "source" if len(column.protocols) == 2 else "open")
    first = next(iter(measurements.values()))[0]
    if line == LINES[1] and first.attack is not None and first.is_white_box and not first.through:
        return Cell("", "own")
    by_seed = {seed: outcomes(each, place) for seed, each in measurements.items()}
    groups = [group for group in by_seed.values() if group is not None]
    if not groups:
        return Cell("", "missing")
    found = estimate([stayed_right(group, column.radius) for group in groups])
    text = percent(found)
    if line == LINES[2] and first.attack is not None and first.attack.epsilon is None and column.radius is None:
        text += f", median {_median([_nearest(group) for group in groups]):.2f}"
    measured = [seed for seed, group in by_seed.items() if group is not None]
    if measured != list(usual):
        text += f", seed{'s' * (len(measured) > 1)} {' '.join(map(str, measured))}"
    return Cell(text, n=found.n, seeds=len(measured))


def _nearest(alternatives: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Of each image the nearest that any of these attacks found."""
    reach = pd.concat([each["l2"].where(each["success"], inf) for each in alternatives], axis=1).min(axis=1)
    return alternatives[0].assign(l2=reach, success=reach < inf)


def _median(frames: Sequence[pd.DataFrame]) -> float:
    return records.median_distance(pd.concat(frames, ignore_index=True)).median


def _note(rows: Sequence[tuple[str, str, Sequence[Cell]]], table: Table, scale: Scale) -> str:
    note = f"Accuracy in %. Measured at “{scale}” scale, with its 95 % interval"
    measured = [each for _, _, cells in rows for each in cells if each.n]
    if measured:
        note += f", on {max(each.n or 0 for each in measured):,} test images or as many as the cell says"
    if any(each.seeds > 1 for each in measured):
        note += "; mean over the training seeds where a cell has several"
    note += "."
    if measured:
        usual, sources = (_usual(role, table, scale) for role in ("", "source"))
        note += f" Training seed{'s' * (len(usual) > 1)} {', '.join(map(str, usual))}"
        if any(row.role == "source" for row in table.rows):
            note += f", of the sources (“No defense”) {', '.join(map(str, sources))}"
        note += ", where a cell names no other."
    lines = {line for _, line, _ in rows}
    if any("median" in each.text for _, _, cells in rows for each in cells):
        note += " “median”: of the L2 distance that a minimal-norm attack needed."
    if LINES[1] in lines:
        note += (
            " The paper's protocol: images made once on the row “No defense”, for each training seed on another "
            "network, shown to all others; before ComDefend that is gray-box."
        )
    reasons = dict.fromkeys(each.reason for _, _, cells in rows for each in cells if each.reason)
    if reasons:
        note += " No number: " + "; ".join(f"{_mark(reason)} {REASONS[reason]}" for reason in reasons) + "."
    return note


def _mark(reason: str) -> str:
    return "abcdefghi"[list(REASONS).index(reason)] + ")"


def _text(each: Cell, most: int) -> str:
    return f"{each.text}{'' if each.n in (None, most) else f', n = {each.n:,}'}" or f"– {_mark(each.reason)}"


def _most(table: Printed) -> int:
    return max((each.n or 0 for _, _, cells in table.rows for each in cells), default=0)


def markdown(table: Printed) -> str:
    """The table in Markdown, with its note, without its title."""
    lines = [
        f"| | | {' | '.join(table.columns)} |",
        "|---|---" + "|---:" * len(table.columns) + "|",
        *(
            f"| {name} | {line} | {' | '.join(_text(each, _most(table)) for each in cells)} |"
            for name, line, cells in table.rows
        ),
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
        texts = [Text(_text(each, _most(table)).replace(" (", "\n(").replace(", ", "\n")) for each in cells]
        made.add_row(Text(name), Text(line), *texts, end_section=line == LINES[-1])
    return made
