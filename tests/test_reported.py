"""Published numbers held against records written by hand."""

from pathlib import Path

import pytest
from study_records import first, of_role, store

from defendpp.reported import reproduced, tried
from defendpp.study import Measurement, Place, measurements


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def transfers(attack: str) -> list[Measurement]:
    return of_role("ours", attack, white_box=False)


def test_of_nothing_measured_nothing_is_told(place: Place) -> None:
    assert reproduced("cpu", place) == ""
    assert tried("cpu", place) == []


def test_published_numbers_are_held_against_both_protocols(place: Place) -> None:
    """86.81 and 55.37 are published of FGSM and BIM; tables 1, 2 and 7 share these cells, which are told once."""
    for job in transfers("fgsm"):
        store(job, first(87), place)
    for jobs, kept in ((transfers("bim"), 90), (of_role("ours", "bim", white_box=True), 0)):
        for each in jobs:
            store(each, first(kept), place)
    told = reproduced("cpu", place).splitlines()
    assert "in 1 of 2 cells under the paper's protocol and in 0 of 1 white-box, and of clean accuracy in –." in told[0]
    assert told[4:] == [
        "| table 2 | ours | FGSM | 86.81 | 87.0 (79.0–92.2) | yes | – | |",
        "| table 2 | ours | BIM | 55.37 | 90.0 (82.6–94.5) | no | 0.0 (0.0–3.7) | no |",
    ]


def test_fine_tuned_rows_are_held_against_the_numbers_of_ours(place: Place) -> None:
    for job in of_role("ours, fine-tuned", "bim", white_box=False):
        store(job, first(55), place)
    told = reproduced("cpu", place).splitlines()
    assert told[4].startswith("| table 2 | ours, fine-tuned | BIM | 55.37 | 55.0 (")
    assert "in – cells under the paper's protocol" in told[0]


def test_of_other_rows_it_is_told_how_many_fit_and_which_fit_white_box_alone(place: Place) -> None:
    """Of Adv. FGSM 99.77 and 9.86 are published under FGSM and BIM; the source is no row of the paper's protocol."""
    for attack, shown, white_box in (("fgsm", 100, 100), ("bim", 80, 10)):
        for kept, is_white in ((shown, False), (white_box, True)):
            for job in of_role("adv-fgsm", attack, white_box=is_white):
                store(job, first(kept), place)
    for job in of_role("source", "bim", white_box=True):
        store(job, first(0), place)
    told = reproduced("cpu", place).splitlines()
    assert "| table 2 | Adv. FGSM | 1 of 2 | 2 of 2 | – |" in told
    assert "| table 2 | No defense | – | 1 of 1 | – |" in told
    misfit = "| table 2 | Adv. FGSM | BIM | 9.86 | 80.0 (71.1–86.7) | 10.0 (5.5–17.4) |"
    assert told[-1] == misfit
    assert told[-3] == "| | row | | reported | paper's protocol | white-box |"
    for job in measurements("variations", "cpu"):
        if job.target.role == "adv-fgsm" and job.attack is not None and job.attack.epsilon == 0.3:
            store(job, first(70), place)
    assert reproduced("cpu", place).splitlines()[-3:] == [
        misfit, "",
        "Under BIM 0.3, half as much again, and the paper's protocol: “Adv. FGSM” 70.0 (60.4–78.1).",
    ]  # fmt: skip


def test_every_way_to_train_stands_beside_the_published_number(place: Place) -> None:
    for role, kept in (("ours", 40), ("ours, fine-tuned", 60), ("ours + GN", 90), ("none", 95)):
        for job in of_role(role, "bim", white_box=False):
            store(job, first(kept), place)
    assert tried("cpu", place) == [
        "MNIST, BIM: the paper has 55.37. “ours, fine-tuned” 60.0 (50.2–69.1), “ours” 40.0 (30.9–49.8)."
    ]
