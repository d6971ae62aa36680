"""Tables from records written by hand: every number, interval and reason."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from study_records import store

from defendpp import intervals, study_report, tables
from defendpp.paper import FIGURES, TABLES
from defendpp.study import Measurement, Place, Subject, figure6, measurements
from defendpp.tables import LINES, markdown, printed, terminal


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def line(table: tables.Printed, row: str, line: str) -> list[tables.Cell]:
    start = [name for name, _, _ in table.rows].index(row)
    return list(table.rows[start + LINES.index(line)][2])


@pytest.mark.parametrize("name", list(TABLES))
def test_no_cell_is_empty_without_a_reason(name: str, place: Place) -> None:
    table = printed(name, "cpu", place)
    lines = LINES[1:] if name == "variations" else LINES  # nothing was published of it
    assert [shown for _, shown, _ in table.rows] == list(lines) * len(TABLES[name].rows)
    for _, _, cells in table.rows:
        assert len(cells) == len(table.columns)
        for cell in cells:
            assert bool(cell.text) != (cell.reason in tables.REASONS)
    for row in TABLES[name].rows if lines == LINES else ():
        for column, cell in zip(TABLES[name].columns, line(table, row.name, "reported"), strict=True):
            value = row.published.get(column.name)
            assert cell.text == ("" if value is None else f"{value:.2f}")


def test_three_seeds_are_a_mean_with_its_interval(place: Place) -> None:
    row = next(row for row in TABLES["table2"].rows if row.name == "ours")
    rights = [[True] * k + [False] * (10 - k) for k in (6, 8, 7)]
    for seed, correct in zip((1, 2, 3), rights, strict=True):
        subject = Subject("ours", "mnist", "resnet18", seed, "cpu")
        transfer = next(
            each
            for each in measurements("table2", "cpu")
            if each.target == subject and each.attack and each.attack.name == "bim" and not each.is_white_box
        )
        store(transfer, correct, place)
    cell = line(printed("table2", "cpu", place), row.name, "paper's protocol")[1]
    expected = intervals.mean_accuracy([np.array(correct) for correct in rights])
    assert expected.value == pytest.approx(0.7)
    assert cell.text == f"70.0 ({100 * expected.low:.1f}–{100 * expected.high:.1f})"
    assert line(printed("table2", "cpu", place), row.name, "white-box")[1].reason == "missing"


def test_what_was_measured_of_three_seeds_is_said(place: Place) -> None:
    subject = Subject("ours", "mnist", "resnet18", 2, "cpu")
    store(Measurement(subject, subject), [True] * 9 + [False], place)
    (text,) = [cell.text for cell in line(printed("table1", "cpu", place), "ours", "paper's protocol")[-1:]]
    found = intervals.accuracy(np.array([True] * 9 + [False]))
    assert text == f"90.0 ({100 * found.low:.1f}–{100 * found.high:.1f}), seed 2"


def test_comdefend_white_box_counts_the_worse_of_both_gradients_image_by_image(place: Place) -> None:
    row = next(row for row in TABLES["table3"].rows if row.role == "comdefend")
    subject = Subject("comdefend", "cifar10", "resnet18", 1, "cpu")
    ways = [
        each
        for each in measurements("table3", "cpu")
        if each.target == subject and each.attack and each.attack.name == "bim" and each.through
    ]
    assert len(ways) == 2
    store(ways[0], [True, True, False, False], place)
    assert line(printed("table3", "cpu", place), row.name, "white-box")[1].reason == "missing"
    store(ways[1], [True, False, True, False], place)
    assert line(printed("table3", "cpu", place), row.name, "white-box")[1].text.startswith("25.0 (")


def test_alternatives_of_different_images_are_refused(place: Place) -> None:
    made = pd.DataFrame({"image": range(4), "correct": True}).set_index("image")
    with pytest.raises(ValueError, match="is of different images: measure it again"):
        tables.stayed_right([made, made.iloc[1:]])


def test_white_box_minimal_norm_attacks_also_give_their_distance(place: Place) -> None:
    subject = Subject("ours", "cifar10", "resnet18", 1, "cpu")
    job = next(
        each
        for each in measurements("table3", "cpu")
        if each.target == subject and each.is_white_box and each.attack and each.attack.name == "ddn"
    )
    store(job, [False] * 20, place, l2=0.37)
    cell = line(printed("table3", "cpu", place), "ours", "white-box")[3]
    assert cell.text.startswith("0.0 (0.0–")
    assert cell.text.endswith(", median 0.37")


def test_comdefend_white_box_distance_is_the_nearer_of_both_gradients(place: Place) -> None:
    """One gradient breaks all images at 0.1, the other none: the median is 0.1, not infinite."""
    subject = Subject("comdefend", "cifar10", "resnet18", 1, "cpu")
    ways = [
        each
        for each in measurements("table3", "cpu")
        if each.target == subject and each.through and each.attack and each.attack.name == "ddn"
    ]
    store(ways[0], [False] * 20, place, l2=0.1)
    store(ways[1], [True] * 20, place, l2=0.0)
    assert line(printed("table3", "cpu", place), "ComDefend", "white-box")[3].text.endswith("median 0.10")


def test_the_source_is_shown_as_white_box(place: Place) -> None:
    subject = Subject("source", "mnist", "resnet18", 0, "cpu")
    for job in measurements("table2", "cpu"):
        if job.target == subject and job.attack and job.attack.name == "bim":
            store(job, [False] * 9 + [True], place)
    table = printed("table2", "cpu", place)
    assert line(table, "No defense", "paper's protocol")[1].reason == "own"
    assert line(table, "No defense", "white-box")[1].text.startswith("10.0 (")


def test_records_of_two_sets_of_weights_are_refused(place: Place) -> None:
    subject = Subject("ours", "mnist", "resnet18", 1, "cpu")
    jobs = [each for each in measurements("table1", "cpu") if each.target == subject and each.is_white_box]
    store(jobs[0], [True], place)
    store(jobs[1], [True], place, weights="others")
    with pytest.raises(ValueError, match=r"records of ours .* are of two sets of weights, "):
        printed("table1", "cpu", place)


def test_a_cell_on_fewer_images_says_how_many(place: Place) -> None:
    subject = Subject("ours", "cifar10", "resnet18", 1, "cpu")
    for job in measurements("table3", "cpu"):
        if job.target == subject and job.is_white_box:
            store(job, [True] * (20 if job.attack is None else 10), place)
    text = markdown(printed("table3", "cpu", place))
    assert "100.0 (72.2–100.0), n = 10 |" in text
    assert "on 20 test images or as many as the cell says" in text
    assert "n = 20" not in text


def test_both_ways_of_printing_hold_every_number(place: Place) -> None:
    table = printed("table4", "cpu", place)
    text = markdown(table)
    assert text.count("\n| ") == 1 + len(table.rows) - 1
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal(table))
    shown = console.export_text()
    for row in TABLES["table4"].rows:
        for value in row.published.values():
            assert f"{value:.2f}" in text
            assert f"{value:.2f}" in shown
    assert table.note.replace("|", "\\|")[:40] in text


def test_figure_6_is_drawn_from_records(place: Place) -> None:
    assert "not measured yet" in study_report.write_figure("figure6", "cpu", place)
    for (protocol, role), series in figure6("cpu").items():
        for k, job in enumerate(series):
            if role == "ours" and protocol == "white-box":
                store(job, [True] * (20 - k) + [False] * k, place)
    curves = study_report._curves("cpu", place)
    assert list(curves["white-box"]) == ["Defend++"]
    assert list(curves["white-box"]["Defend++"]["value"]) == pytest.approx([1 - 0.05 * k for k in range(11)])
    assert (place.results / "figure6.png").exists() is False
    assert str(place.results / "figure6.png") in study_report.write_figure("figure6", "cpu", place)
    assert (place.results / "figure6.png").exists()


def test_figures_that_were_not_measured_say_so(place: Place) -> None:
    for name in FIGURES:
        assert "not measured yet" in study_report.write_figure(name, "cpu", place)


def test_a_table_is_written_beside_its_records(place: Place) -> None:
    study_report.write_table("table8", "cpu", place)
    assert (place.results / "table8.md").read_text().endswith(markdown(printed("table8", "cpu", place)))
