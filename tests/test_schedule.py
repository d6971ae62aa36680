"""Doing jobs: in order, on two local Ray workers, interrupted and gone on with, and how long what is left will take."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from defendpp import published, schedule, threats
from defendpp.schedule import cost, in_order, on_ray, seconds_left
from defendpp.study import Job, Making, Measurement, Picture, Place, Subject, Training, missing, plan

SOURCE = Subject("source", "mnist", "resnet18", 0, "cpu")
OURS = replace(SOURCE, role="ours", seed=1)
TUNED = replace(SOURCE, role="ours, fine-tuned", seed=1)
MADE = Making(SOURCE, threats.fgsm(0.2), None)
JOBS: list[Job] = [
    Training(SOURCE),
    Training(OURS),
    Training(TUNED),
    MADE,
    Measurement(OURS, SOURCE, threats.fgsm(0.2)),
    Measurement(TUNED, TUNED),
]


@dataclass(frozen=True)
class Note:
    """Note when a job began and ended; fail at those named."""

    folder: Path
    failing: tuple[str, ...] = ()
    seconds: float = 0.0
    together: tuple[str, ...] = ()
    """Those that end only when all of them have begun."""

    def __call__(self, job: Job) -> None:
        started = time.time()
        time.sleep(self.seconds)
        if job.key in self.together:
            (self.folder / f"{job.key} began").touch()
            while not all((self.folder / f"{key} began").exists() for key in self.together):
                assert time.time() < started + 60, "the others did not begin"
                time.sleep(0.01)
        if job.key in self.failing:
            raise KeyError(f"cannot do {job}")  # of no kind that was expected
        (self.folder / job.key).write_text(json.dumps([started, time.time()]))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_in_order_does_all(tmp_path: Path) -> None:
    told: list[str] = []
    assert in_order(JOBS, Note(tmp_path), lambda job, problem: told.append(job.key)) == 0
    assert told == [job.key for job in JOBS]
    assert names(tmp_path) == {job.key for job in JOBS}


@pytest.mark.parametrize("on_cluster", [False, True])
def test_a_failure_stops_only_what_needs_it(tmp_path: Path, on_cluster: bool) -> None:
    failing = Note(tmp_path, (Training(SOURCE).key,))
    told: dict[str, str] = {}

    def tell(job: Job, problem: BaseException | None) -> None:
        told[job.key] = str(problem)

    failed = on_ray(JOBS, failing, tell, workers=2) if on_cluster else in_order(JOBS, failing, tell)
    assert failed == 5
    assert names(tmp_path) == {Training(OURS).key}
    assert all("cannot do train source" in told[job.key] for job in JOBS if job != Training(OURS))
    assert told[Training(OURS).key] == "None"


def test_two_ray_workers_work_at_once_and_keep_the_order(tmp_path: Path) -> None:
    note = Note(tmp_path, together=(Training(SOURCE).key, Training(OURS).key))
    assert on_ray(JOBS, note, lambda *_: None, workers=2) == 0
    spans = {job.key: json.loads((tmp_path / job.key).read_text()) for job in JOBS}
    for job in JOBS:
        for needed in job.needs:
            assert spans[needed.key][1] <= spans[job.key][0]


def test_what_comes_first_in_the_plan_is_done_first(tmp_path: Path) -> None:
    """A measurement whose needs are done goes before trainings that were ready long before it."""
    later: list[Job] = [Training(replace(SOURCE, role="none", seed=seed)) for seed in (1, 2, 3)]
    jobs = [*JOBS[:2], JOBS[3], JOBS[4], *later]
    assert on_ray(jobs, Note(tmp_path, seconds=0.5), lambda *_: None, workers=1) == 0
    started = {path.name: json.loads(path.read_text())[0] for path in tmp_path.iterdir()}
    assert sorted(started, key=lambda key: started[key]) == [job.key for job in jobs]


def test_a_figure_that_is_there_waits_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another one that needs the same networks does."""
    place = Place(tmp_path / "results", tmp_path / "work")
    done = Picture("figure7", "cpu").file(place)
    done.parent.mkdir(parents=True)
    done.touch()
    jobs = plan(["figure7", "figure8"], "cpu")
    parts = {name: plan([name], "cpu") for name in ("figure7", "figure8")}
    schedule.listing(jobs, missing(jobs, place), place, parts=parts)
    told = capsys.readouterr().out
    assert "figure7: 3 of 3 jobs done\n" in told
    assert "figure8: 0 of 3 jobs done, about " in told


def test_interrupted_and_started_again_it_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "results", tmp_path / "work")
    jobs = plan(["figure7"], "cpu")
    did: list[str] = []

    def perform(job: Job, place: Place, **_: object) -> None:
        if len(did) == 1:
            did.append("interrupt")
            raise KeyboardInterrupt
        did.append(job.key)
        job.file(place).parent.mkdir(parents=True, exist_ok=True)
        job.file(place).write_text("{}")
        if isinstance(job, Training):
            run = place.run(job.subject.recipe)
            run.mkdir(parents=True)
            (run / "run.json").write_text("{}")
            (run / "classifier.safetensors").touch()

    monkeypatch.setattr(schedule, "perform", perform)
    monkeypatch.setattr(schedule, "seconds", lambda *_: None)
    do = schedule.Doing(place, None, "cpu", bar=False)
    with pytest.raises(KeyboardInterrupt):
        schedule.run(jobs, missing(jobs, place), do)
    schedule.run(jobs, missing(jobs, place), do)
    assert did == [jobs[0].key, "interrupt", *(job.key for job in jobs[1:])]
    assert missing(jobs, place) == []


def test_failures_are_counted_and_the_first_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(job: Job, *_: object, **__: object) -> None:
        raise ValueError("no such digits")

    monkeypatch.setattr(schedule, "perform", perform)
    place = Place(tmp_path, tmp_path)
    with pytest.raises(RuntimeError, match=r"2 of 2 jobs failed, the first: train source .*: no such digits"):
        schedule.run([], [Training(SOURCE), MADE], schedule.Doing(place, None, "cpu", bar=False))


def test_the_cost_follows_what_is_computed() -> None:
    train, attack, look = (cost(job) for job in (Training(SOURCE), MADE, Measurement(OURS, SOURCE, threats.fgsm(0.2))))
    assert train == pytest.approx(10 * 55_000 * 3 * cost(Measurement(SOURCE, SOURCE)) / (2 * 10_000))
    assert attack == pytest.approx(2 * look)
    bim = Making(SOURCE, threats.bim(0.2, steps=100), None)
    assert cost(bim) == pytest.approx(attack * 202 / 4)
    assert cost(Making(SOURCE, threats.bim(0.2, steps=100), 1000)) == pytest.approx(cost(bim) / 10)
    assert cost(Training(replace(OURS, role="adv-pgd"))) > 2 * train
    certificate = Measurement(OURS, OURS, threats.smoothing(0.5, samples=1000), 10)
    assert cost(certificate) == pytest.approx(cost(Measurement(SOURCE, SOURCE)) / 1000 * 501)


def test_a_source_shows_its_set_and_attacks_nothing_again() -> None:
    shown, clean = Measurement(SOURCE, SOURCE, threats.bim(0.2, steps=100)), Measurement(SOURCE, SOURCE)
    assert cost(shown) == cost(clean)
    assert schedule._likeness(shown) == schedule._likeness(clean)


def test_a_look_costs_what_the_network_does_that_looks() -> None:
    deep = replace(OURS, network="resnet50")
    assert cost(Measurement(deep, SOURCE, threats.fgsm(0.2))) == cost(Measurement(deep, deep)) > cost(JOBS[4])


def test_alternating_training_costs_its_cycles_too() -> None:
    """Two cycles of one epoch of the auto-encoder and one of the classifier come before ten of joint learning."""
    assert cost(Training(replace(OURS, role="ours, alternating"))) == pytest.approx(14 / 10 * cost(Training(OURS)))


def test_flops_of_a_convolution_by_hand() -> None:
    """VGG16 of width 16 on 28x28: the first convolution alone makes 2 * 28 * 28 * 9 * 16 operations."""
    whole = schedule.flops("vgg16", 16, "halve", "none", "mnist")
    sides = [28, 28, 14, 14, 7, 7, 7, 4, 4, 4, 2, 2, 2]
    widths = [1, 16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128]
    pairs = zip(sides, widths, widths[1:], strict=False)
    convolutions = sum(2 * side**2 * 9 * before * after for side, before, after in pairs)
    head = 2 * (128 * 100 + 100 * 40 + 40 * 10)
    assert whole == pytest.approx(convolutions + head)


def test_the_time_left_is_what_the_like_of_it_took(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path)
    done = Training(SOURCE)
    done.file(place).parent.mkdir(parents=True)
    done.file(place).write_text(json.dumps({"result": {"seconds": 100.0}}))
    other = Training(replace(SOURCE, role="none", seed=1))
    assert seconds_left([other, other], [done], place) == pytest.approx(200)
    assert seconds_left([other], [], place) == pytest.approx(cost(other) / schedule.RATE)


def test_published_networks_take_no_time_but_have_a_cost(tmp_path: Path) -> None:
    steady = Training(Subject("steady", "mnist", "resnet18", 1, "cpu"))
    assert published.of(steady.subject.recipe.hash), "the example is to be a published network"
    assert seconds_left([steady], [], Place(tmp_path, tmp_path)) == 0
    none = Training(Subject("none", "mnist", "resnet18", 1, "cpu"))
    assert cost(steady) == pytest.approx(2 * cost(none))  # of every image it sees two copies


@pytest.mark.parametrize(
    ("cards", "device", "workers", "share"),
    [(1, "auto", 4, 0.25), (4, "cuda", 2, 1.0), (0, "auto", 2, 0.0), (1, "cpu", 4, 0.0), (0, "cuda", None, 1.0)],
)
def test_local_workers_share_out_the_cards(
    monkeypatch: pytest.MonkeyPatch, cards: int, device: str, workers: int | None, share: float
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert schedule.share_of_a_card(device, workers) == share


def test_estimates_go_by_results_of_every_kind_but_not_by_all(tmp_path: Path) -> None:
    place = Place(tmp_path / "results", tmp_path / "work")
    jobs = plan(["table2"], "cpu")
    assert schedule.samples(jobs, place) == []
    trained = next(job for job in jobs if isinstance(job, Training))
    measured = [job for job in jobs if isinstance(job, Measurement) and job.is_white_box and job.attack][:30]
    every: list[Job] = [trained, *measured]
    for job in every:
        job.file(place).parent.mkdir(parents=True, exist_ok=True)
        job.file(place).touch()  # of the training no weights
    taken = schedule.samples(jobs, place, of_each=3)
    assert trained in taken
    assert 3 <= len(taken) - 1 < len(measured)
