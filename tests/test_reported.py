"""Published numbers held against records written by hand."""

from pathlib import Path

import pytest
from study_records import first, of_role, store

from defendpp.reported import held, larger_budget, reproduced, tried
from defendpp.study import Measurement, Place, measurements


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def transfers(attack: str) -> list[Measurement]:
    return of_role("ours", attack, white_box=False)


def told(place: Place) -> list[str]:
    return reproduced(held("cpu", place)).splitlines()


def test_of_nothing_measured_nothing_is_told(place: Place) -> None:
    assert reproduced(held("cpu", place)) == ""
    assert tried("cpu", place) == []
    assert larger_budget("cpu", place) == ""


def test_published_numbers_are_held_against_both_protocols(place: Place) -> None:
    """86.81 and 55.37 are published of FGSM and BIM; tables 1, 2 and 7 share these cells, which are told once."""
    for job in transfers("fgsm"):
        store(job, first(87), place)
    for jobs, kept in ((transfers("bim")[:1], 90), (of_role("ours", "bim", white_box=True), 0)):
        for each in jobs:
            store(each, first(kept), place)
    lines = told(place)
    assert "in 1 of 1 cells of 3 training seeds and 0 of 1 cells of 1 training seed under the paper's" in lines[0]
    assert "and in 0 of 1 cells of 3 training seeds white-box" in lines[0]
    assert lines[4:] == [
        "| table 2 | ours | FGSM | 86.81 | 87.0 (79.0–92.2) | yes | – | |",
        "| table 2 | ours | BIM | 55.37 | 90.0 (82.6–94.5) | no | 0.0 (0.0–3.7) | no |",
    ]


def test_fine_tuned_rows_are_held_against_the_numbers_of_ours(place: Place) -> None:
    for job in of_role("ours, fine-tuned", "bim", white_box=False):
        store(job, first(55), place)
    lines = told(place)
    assert lines[4].startswith("| table 2 | ours, fine-tuned | BIM | 55.37 | 55.0 (")
    assert "under an attack in no cell under the paper's protocol" in lines[0]


def test_other_defences_are_counted_and_told_under_the_attacks_without_budget(place: Place) -> None:
    """Of Adv. FGSM 99.77 and 9.86 are published under FGSM and BIM; the source is no row of the paper's protocol."""
    for attack, shown, white_box in (("fgsm", 100, 100), ("bim", 80, 10)):
        for kept, is_white in ((shown, False), (white_box, True)):
            for job in of_role("adv-fgsm", attack, white_box=is_white):
                store(job, first(kept), place)
    for job in of_role("adv-pgd", "bim", white_box=False):  # 36.71: not below, and white-box not measured
        store(job, first(37), place)
    for job in of_role("source", "bim", white_box=True):
        store(job, first(0), place)
    lines = told(place)
    assert "| table 2 | Adv. FGSM | 1 of 2 | 2 of 2 | – |" in lines
    assert "| table 2 | No defense | – | 1 of 1 | – |" in lines
    assert lines[-1] == "| table 2 | Adv. FGSM | BIM | 9.86 | 80.0 (71.1–86.7) | 10.0 (5.5–17.4) |"
    assert "1 of 1 printed numbers lie below the interval of the paper's protocol, and 1 are nearer" in lines[-5]
    for job in of_role("adv-pgd", "bim", white_box=True):
        store(job, first(0), place)
    assert "1 of 2 printed numbers lie below the interval of the paper's protocol, and 1 are nearer" in told(place)[-6]


def test_a_larger_budget_is_compared_on_the_same_network(place: Place) -> None:
    for job, kept in zip(of_role("adv-fgsm", "bim", white_box=False), (90, 90, 60), strict=True):
        store(job, first(kept), place)
    for job in measurements("variations", "cpu"):
        if job.target.role in ("adv-fgsm", "ours") and job.attack is not None and job.attack.name == "bim":
            store(job, first(50), place)  # of ours nothing at the usual budget
    assert larger_budget("cpu", place) == (
        "With a budget of 0.3 instead of 0.2 on MNIST, BIM under the paper's protocol leaves “Adv. FGSM” 50.0 "
        "(40.4–59.6) instead of 60.0 (50.2–69.1) (printed 9.86; training seed 3, n = 100)."
    )


def test_ways_to_train_are_told_where_the_number_is_not_reached(place: Place) -> None:
    for role, kept in (("ours", 40), ("ours, fine-tuned", 60), ("ours + GN", 90), ("none", 95)):
        for job in of_role(role, "bim", white_box=False):
            store(job, first(kept), place)
    assert tried("cpu", place) == [
        "MNIST, BIM: the paper has 55.37. “ours” 40.0 (30.9–49.8) (training seeds 1, 2, 3; n = 100), “ours, "
        "fine-tuned” 60.0 (50.2–69.1) (training seeds 1, 2, 3; n = 100)."
    ]
    for job in of_role("ours", "bim", white_box=False):
        job.file(place).unlink()
        store(job, first(55), place)
    assert tried("cpu", place) == []
