"""Tables beyond the paper: every row builds, every cell can be measured, and the worst of several attacks counts."""

from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import norm
from study_records import store

from defendpp import paper, tables
from defendpp.robustness import RADII, ROLES, TABLES, attacks, named, recipe
from defendpp.study import Making, Measurement, Place, Training, cell, plan


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def of(table: str, row: str, column: str) -> list[list[Measurement]]:
    """The white-box measurements of a cell, by seed."""
    chosen = TABLES[table]
    named_row = next(each for each in chosen.rows if each.name == row)
    named_column = next(each for each in chosen.columns if each.name == column)
    transfer, white_box = cell(chosen, named_row, named_column, "cpu")
    assert transfer == {}
    return [*white_box.values()]


def test_budgets_are_named_as_people_write_them() -> None:
    assert [named(each) for each in (0.2, 0.1, 2 / 255, 8 / 255)] == ["0.2", "0.1", "2/255", "8/255"]


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_every_role_is_a_recipe_of_its_own(data: str, scale: paper.Scale) -> None:
    made = {role: recipe(role, data, "resnet18", scale, 1) for role in ROLES}
    for each in made.values():
        each.check()
    alike = int(scale == "cpu")  # where all are 16 wide
    assert len({each.hash for each in made.values()}) == len(ROLES) - alike
    assert (made["steady, width 16"] == made["steady"]) == alike
    assert [made[f"steady, width {width}"].width for width in (8, 16, 32)] == [8, 16, 32]
    assert recipe("ours", data, "resnet18", scale, 1) == paper.recipe("ours", data, "resnet18", scale, 1)
    steady, decoder = made["steady"], made["steady, decoder"]
    assert steady.consistency == decoder.consistency > 0
    assert made["loud"].noise == steady.noise == decoder.noise > 0


@pytest.mark.parametrize("name", list(TABLES))
def test_no_cell_is_without_a_measurement_or_its_needs(name: str) -> None:
    jobs = plan([name], "cpu")
    done = set()
    for job in jobs:
        assert all(needed.key in done for needed in job.needs)
        done.add(job.key)
    table = TABLES[name]
    for row in table.rows:
        for column in table.columns:
            seeds = of(name, row.name, column.name)
            several = name in ("robust-mnist", "parts-mnist") and column.name in ("Clean", "L∞ 0.2")
            assert len(seeds) == (3 if several else 1)
            assert all(each.key in done for group in seeds for each in group)


def test_all_rows_of_a_table_have_one_architecture() -> None:
    for name in TABLES.keys() - {"width-mnist", "width-cifar10"}:
        trained = [job.subject.recipe for job in plan([name], "cpu") if isinstance(job, Training)]
        assert len({(each.network, each.width, each.stem) for each in trained}) == 1, name


@pytest.mark.parametrize(("data", "widths"), [("mnist", [16, 32]), ("cifar10", [8, 16, 32])])
def test_the_table_of_widths_differs_in_nothing_else(data: str, widths: list[int]) -> None:
    trained = [job.subject.recipe for job in plan([f"width-{data}"], "cpu") if isinstance(job, Training)]
    trained = [each for each in trained if each.seed == 1]
    assert [each.width for each in trained] == widths
    assert len({replace(each, width=16) for each in trained}) == 1


def test_the_worst_of_all_is_over_every_attack_and_the_undefended_twins_images() -> None:
    (worst,) = of("record-mnist", "noise + consistency", "worst of all, L∞ 0.2")
    white, transferred = worst[:-1], worst[-1]
    assert [each.attack.name for each in white if each.attack] == ["cascade", "square", "auto_attack"]
    (against_decoder,) = of("adaptive-mnist", "noise + decoder", "worst of all, L∞ 0.2")
    assert [each.attack.name for each in against_decoder[:-1] if each.attack] == [
        "cascade", "adaptive_bottleneck", "adaptive_reconstruction",
    ]  # fmt: skip
    assert against_decoder[-1].source == transferred.source
    assert all(each.is_white_box and each.images == 1000 for each in white)
    assert (transferred.source.role, transferred.is_white_box) == ("source", False)
    assert any(isinstance(each, Making) for each in transferred.needs)


def test_thresholds_are_attacked_through_both_gradients() -> None:
    for row in ("0/1 images", "0/1 images + noise"):
        for group in of("robust-mnist", row, "L∞ 0.2"):
            assert [each.through for each in group] == ["straight-through", "identity"]


def test_thresholds_are_attacked_by_pixel_flips_in_l2() -> None:
    for row in ("0/1 images", "0/1 images + noise"):
        ((flips,),) = of("robust-mnist", row, "L2 2")
        assert flips.attack is not None
        assert (flips.attack.name, flips.attack.epsilon, flips.through) == ("pixel_flips", 2.0, "identity")
    ((usual,),) = of("robust-mnist", "noise", "L2 2")
    assert usual.attack is not None
    assert usual.attack.name == "cascade"


def test_a_radius_that_no_network_could_reach_is_no_column() -> None:
    for data, radii in RADII.items():
        settings = attacks(data)["Certified"].settings
        farthest = settings["sigma"] * norm.ppf(settings["alpha"] ** (1 / settings["samples"]))
        assert max(radii) < farthest


def test_an_image_counts_where_it_is_right_under_all(place: Place) -> None:
    (worst,) = of("record-mnist", "noise + consistency", "worst of all, L∞ 0.2")
    for i, each in enumerate(worst):
        store(each, [i != k for k in range(10)], place)
    table = tables.printed("record-mnist", "cpu", place)
    at = list(table.columns).index("worst of all, L∞ 0.2")
    shown = {name: cells[at] for name, _, cells in table.rows}
    assert shown["noise + consistency"].text.startswith("60.0 (")
    assert shown["noise"].reason == "missing"
    assert {line for _, line, _ in table.rows} == {"white-box"}


def test_certified_accuracy_is_at_a_radius(place: Place) -> None:
    ((certificate,),) = of("record-mnist", "noise + consistency", "certified L2 1.5")
    store(certificate, [True] * 8 + [False] * 2, place, l2=1.2)
    table = tables.printed("record-mnist", "cpu", place)
    cells = next(cells for name, _, cells in table.rows if name == "noise + consistency")
    shown = dict(zip(table.columns, cells, strict=True))
    for radius, expected in ((0.5, "80.0 ("), (1.0, "80.0 ("), (1.5, "0.0 (")):
        assert shown[f"certified L2 {radius:g}"].text.startswith(expected)


def test_attacks_of_the_paper_stay_as_they_are() -> None:
    assert set(paper.attacks("mnist")) < set(attacks("mnist"))
    assert set(attacks("imagenet")) == set(paper.attacks("imagenet"))
    with pytest.raises(ValueError, match="attacks nothing"):
        attacks("mnist")["Certified"].run(None, None, None)
