"""The plan: no cell of the paper without a measurement, nothing done twice, needs before what needs them."""

from pathlib import Path

import pytest

from defendpp import study, threats
from defendpp.paper import ONE_SEED, SOURCE_SEEDS, TABLES
from defendpp.study import NAMES, Making, Measurement, Picture, Place, Subject, Training, cell, missing, plan, seeds

PLAIN = Subject("none", "mnist", "resnet18", 1, "cpu")
OURS = Subject("ours", "mnist", "resnet18", 1, "cpu")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_every_number_of_the_paper_has_a_measurement_beside_it() -> None:
    for table in TABLES.values():
        for row in table.rows:
            for column in table.columns:
                transfer, white_box = cell(table, row, column, "cpu")
                if not row.role:  # quoted
                    continue
                if "transfer" in column.protocols:
                    assert transfer, (table.title, row.name, column.name)
                is_own = column.source in (None, column.network or row.network) and "white-box" in column.protocols
                if column.attack != "Clean" and is_own and row.role != "comdefend-wb":
                    assert white_box, (table.title, row.name, column.name)


def test_transferred_images_are_of_an_undefended_network_that_is_not_the_target() -> None:
    for name in TABLES:
        table = TABLES[name]
        for row in table.rows:
            for column in table.columns:
                transfer, white_box = cell(table, row, column, "cpu")
                for each in (each for group in transfer.values() for each in group):
                    assert each.source.role in ("source", "none") or each.attack is None or each.through == "bare"
                    own = row.role == "source" and column.source in (None, row.network, column.network)
                    if each.attack is not None and not own and each.through != "bare":
                        assert not each.is_white_box, (name, row.name, column.name)
                assert all(each.is_white_box for group in white_box.values() for each in group)


def test_three_seeds_for_tables_1_and_2_and_none_of_them_the_sources() -> None:
    for name in ("table1", "table2"):
        for row in TABLES[name].rows:
            if row.role == "source":
                assert seeds(row, TABLES[name], "cpu") == tuple(SOURCE_SEEDS.values())
            elif not row.seeds:
                assert seeds(row, TABLES[name], "cpu") == (1, 2, 3)
    own = {row.name: row.seeds for name in ("table1", "table2") for row in TABLES[name].rows if row.seeds}
    hourglasses = dict.fromkeys(("Hourglass", "Hourglass+SC", "Hourglass+SA"), (2, 3))
    assert own == {**hourglasses, "ComDefend-wb": (1,), "ours, alternating": (1,)}
    assert not {*SOURCE_SEEDS} & {*SOURCE_SEEDS.values()}
    assert {seeds(row, TABLES["table3"], "cpu") for row in TABLES["table3"].rows} == {(0,), (1,)}


def test_each_training_seed_has_a_source_of_its_own() -> None:
    row = next(row for row in TABLES["table2"].rows if row.role == "ours, fine-tuned")
    transfer, _ = cell(TABLES["table2"], row, TABLES["table2"].columns[0], "cpu")
    assert {seed: group[0].source.seed for seed, group in transfer.items()} == SOURCE_SEEDS
    for (each,) in transfer.values():  # and descends from it
        assert each.target.recipe.start == each.source.recipe.hash


def test_networks_that_meet_across_architectures_have_one_training_seed_in_common() -> None:
    table = TABLES["table7"]
    for row in table.rows:
        for column in table.columns:
            ((each,), *more) = cell(table, row, column, "cpu")[0].values()
            if column.source != column.network:
                assert not more
                assert {each.target.seed, each.source.seed} <= {ONE_SEED["mnist"], SOURCE_SEEDS[ONE_SEED["mnist"]]}


def test_comdefend_white_box_is_attacked_in_two_ways() -> None:
    (row,) = (row for row in TABLES["table2"].rows if row.role == "comdefend")
    _, white_box = cell(TABLES["table2"], row, TABLES["table2"].columns[1], "cpu")
    assert [each.through for each in white_box[1]] == ["straight-through", "identity"]


def test_a_plan_names_each_job_once_and_after_what_it_needs() -> None:
    jobs = plan(NAMES, "cpu")
    places = {job.key: place for place, job in enumerate(jobs)}
    assert len(places) == len(jobs)
    for job in jobs:
        for needed in job.needs:
            assert places[needed.key] < places[job.key], (str(needed), str(job))


def test_a_plan_of_one_row_and_seed_has_it_and_what_it_needs() -> None:
    jobs = plan(["table1", "table2", "figure6"], "cpu", rows=["ours"], training_seeds=[2])
    trained = {(job.subject.role, job.subject.seed) for job in jobs if isinstance(job, Training)}
    assert trained == {("ours", 2), ("source", 4)}
    measured = {job.key for job in jobs if isinstance(job, Measurement)}
    table = TABLES["table2"]  # table 1 asks for less of the same
    row = next(row for row in table.rows if row.name == "ours")
    protocols = [protocol for column in table.columns for protocol in cell(table, row, column, "cpu")]
    assert measured == {each.key for protocol in protocols for each in protocol.get(2, [])}


def test_the_sources_row_is_chosen_by_the_training_seed_that_it_serves() -> None:
    jobs = plan(["table2"], "cpu", rows=["No defense"], training_seeds=[3])
    assert {job.target.seed for job in jobs if isinstance(job, Measurement)} == {SOURCE_SEEDS[3]}


def test_a_plan_refuses_rows_and_seeds_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"'our' is no row of table1, table7, whose rows are: 1 shared"):
        plan(["table1", "table7"], "cpu", rows=["ours", "our"])
    with pytest.raises(ValueError, match="'ours' is no row of figure6, which is no table"):
        plan(["figure6"], "cpu", rows=["ours"])
    with pytest.raises(ValueError, match="nothing of table3, figure6 is measured with training seed 2, only with 1; a"):
        plan(["table3", "figure6"], "cpu", training_seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="seed 1, only with 2, 3"):
        plan(["table1"], "cpu", rows=["Hourglass"], training_seeds=[1])
    with pytest.raises(ValueError, match="seed 1, only with none"):
        plan(["figure6"], "cpu", training_seeds=[1])


def test_tables_share_what_they_have_in_common() -> None:
    first, second = ({job.key for job in plan([name], "cpu")} for name in ("table1", "table2"))
    assert Training(OURS).key in first & second
    assert Measurement(OURS, OURS).key in first & second
    assert len(plan(["table1", "table2"], "cpu")) == len(first | second)
    assert {job.key for job in plan(["table7"], "cpu")} & {job.key for job in plan(["table5"], "cpu")}


def test_what_determines_a_measurement_names_it() -> None:
    base = Measurement(OURS, OURS.source, threats.fgsm(0.2), 100)
    others = [
        Measurement(PLAIN, OURS.source, threats.fgsm(0.2), 100),
        Measurement(OURS, PLAIN, threats.fgsm(0.2), 100),
        Measurement(OURS, OURS.source, threats.fgsm(0.3), 100),
        Measurement(OURS, OURS.source, threats.bim(0.2, steps=10), 100),
        Measurement(OURS, OURS.source, threats.bim(0.2, steps=20), 100),
        Measurement(OURS, OURS.source, threats.rounded(threats.fgsm(0.2)), 100),
        Measurement(OURS, OURS.source, threats.fgsm(0.2), None),
        Measurement(OURS, OURS.source, threats.fgsm(0.2), 100, "identity"),
    ]
    assert len({each.key for each in [base, *others]}) == 1 + len(others)
    assert base.key == Measurement(OURS, OURS.source, threats.fgsm(0.2), 100).key


def test_what_is_done_needs_nothing_any_more(place: Place) -> None:
    jobs = plan(["figure6"], "cpu")
    assert missing(jobs, place) == jobs
    measured = [job for job in jobs if isinstance(job, Measurement)]
    for job in measured[:-1]:
        touch(job.file(place))
    left = missing(jobs, place)
    last = measured[-1]
    assert {job.key for job in left} == {last.key, *(job.key for job in last.needs)}  # without weights, train once more
    touch(last.file(place))
    assert missing(jobs, place) == []


def test_a_training_is_done_with_its_result_and_its_weights(place: Place) -> None:
    job = Training(OURS)
    touch(job.file(place))
    job.file(place).write_text('{"result": 1, "id": "a"}')
    assert not job.is_done(place)  # the weights stayed on another machine
    touch(place.run(OURS.recipe) / "classifier.safetensors")
    assert not job.is_done(place)
    (place.run(OURS.recipe) / "run.json").write_text('{"result": 1}')
    assert job.is_done(place)
    (place.run(OURS.recipe) / "run.json").write_text('{"result": 2}')
    assert not job.is_done(place)  # it was trained once more


def test_a_network_that_starts_from_another_waits_for_it() -> None:
    tuned = Subject("ours, fine-tuned", "mnist", "resnet18", 2, "cpu")
    fixed = Subject("adv-fgsm-fixed", "mnist", "resnet18", 2, "cpu")
    for each in (tuned, fixed):
        assert [job.key for job in Training(each).needs] == [Training(each.source).key]
    assert Training(OURS).needs == []


def test_a_picture_needs_the_networks_it_shows() -> None:
    assert Picture("figure2", "cpu").needs == []
    assert [str(job) for job in Picture("figure8", "cpu").needs] == [str(Training(OURS.source)), str(Training(OURS))]


def test_the_paper_scale_attacks_all_images() -> None:
    for job in plan(NAMES, "paper"):
        if isinstance(job, Making | Measurement):
            assert job.images is None


def test_white_box_attacks_of_many_steps_take_fewer_images_at_cpu_scale() -> None:
    assert study.count(OURS, "BIM", white_box=True) == 1000
    assert study.count(OURS, "BIM", white_box=False) is None
    assert study.count(OURS, "FGSM", white_box=True) is None


def test_every_table_has_its_first_seeds_before_any_has_its_second() -> None:
    trained = [job.subject for job in plan(NAMES, "cpu") if isinstance(job, Training) and job.subject.role != "source"]
    rows = [(each.role, each.data, each.network) for each in trained]
    last = next(place for place, each in enumerate(trained) if each.seed == 3)
    assert {*rows[last:]} <= {*rows[:last]}
    assert {each.seed for each in trained[last:]} == {3}
    measured = [job for job in plan(["robust-mnist"], "cpu") if isinstance(job, Measurement)]
    budgets = [job.attack.epsilon for job in measured if job.attack]
    assert budgets.index(0.1) < len({row.name for row in study.TABLES["robust-mnist"].rows}) + 2  # of one seed: early
