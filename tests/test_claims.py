"""What the paper claims, held against records written by hand."""

from pathlib import Path

import numpy as np
import pytest
from study_records import first, of_role, store

from defendpp.claims import budget_and_removal, headlines, orders, universality, visibility
from defendpp.files import write_arrays
from defendpp.questions import OTHER
from defendpp.study import Measurement, Picture, Place, figure6, measurements


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def transfers(attack: str) -> list[Measurement]:
    return of_role("ours", attack, white_box=False)


def test_nothing_is_claimed_of_what_was_not_measured(place: Place) -> None:
    assert budget_and_removal("cpu", place) == []
    assert len(orders("table2", "cpu", place)) == 1
    assert universality("table7", "cpu", place) == visibility("cpu", place) == []


def test_images_of_another_architecture_are_held_against_those_of_its_own(place: Place) -> None:
    jobs = {
        (job.target.role, job.target.network, job.source.network): job
        for job in measurements("table7", "cpu")
        if job.attack is not None and not job.is_white_box and job.target.seed == 2
    }
    for role, cross, own, of_18 in (("ours", 90, 70, 60), ("none", 70, 75, 75)):
        store(jobs[role, "resnet50", "resnet18"], first(cross), place)
        store(jobs[role, "resnet50", "resnet50"], first(own), place)
        store(jobs[role, "resnet18", "resnet18"], first(of_18), place)
    other, larger = universality("table7", "cpu", place)
    assert other.startswith(
        "ResNet-50 ← ResNet-18, beside ResNet-50 ← ResNet-50 (the paper: +2.74): “ours” +20.0 points"
    )
    assert "“No defense, another seed” -5.0 points" in other
    assert larger.startswith(
        "ResNet-50 ← ResNet-50, beside ResNet-18 ← ResNet-18 (the paper: +0.92): “ours” +10.0 points"
    )
    for job in measurements("table7", "cpu"):
        if (
            job.target.role == "source"
            and job.is_white_box
            and job.attack is not None
            and job.target.network == "resnet50"
        ):
            store(job, first(66), place)
    assert universality("table7", "cpu", place)[1].endswith(
        "Of these images their own source gets right 66.0 % under ResNet-50 ← ResNet-50: they hardly attack."
    )


@pytest.mark.parametrize(
    ("fgsm", "beside"), [(4.0, ", where the paper has BIM's images as the more visible."), (2.0, ".")]
)
def test_which_attack_moves_the_same_images_more(fgsm: float, beside: str, place: Place) -> None:
    """BIM was run on 50 images, of which it left 20, wrong to begin with, as they were."""
    for attack, l2 in (("fgsm", [fgsm] * 100), ("bim", [3.0] * 30 + [0.0] * 20)):
        store(of_role("source", attack, white_box=True)[0], first(10, n=len(l2)), place, l2=l2)
    (line,) = visibility("cpu", place)
    far, near = ("FGSM", "BIM") if fgsm > 3 else ("BIM", "FGSM")
    assert line.startswith(
        f"MNIST: within the same L∞ budget {far} moves the images of “No defense” farther than {near}"
    )
    assert line.endswith(f"against {min(fgsm, 3.0):.2f} (medians, n = 30){beside}")


def test_the_headlines_hold_ours_against_what_it_has_to_beat(place: Place) -> None:
    assert headlines("cpu", place) == ""
    store(of_role("ours", "bim", white_box=False)[0], first(9), place)  # the other has no such seed
    for role, kept in (("ours", 50), ("none", 40)):
        for job in of_role(role, "fgsm", white_box=False):
            store(job, first(kept), place)
    assert headlines("cpu", place).splitlines()[2:] == [
        "| MNIST | Defend++, reported | 86.81 | 55.37 | 99.10 |",
        "| | Defend++, shown images of another network | 50.0 (40.4–59.6), n = 100 | – | – |",
        "| | undefended, another seed, shown images of another network | 40.0 (30.9–49.8), n = 100 | – | – |",
    ]


def test_what_is_removed_is_told_of_images_that_were_changed(place: Place) -> None:
    """Of four images one was left alone. Rebuilding brings two of three nearer to the clean image than to the attacked
    one, and one nearer to it than that was; the threshold three and none."""
    path = Picture("figure8", "cpu").file(place)
    arrays = {"distance": [0, 1, 1, 1], "D_rc": [0, 0.5, 2, 3], "D_ra": [0, 1, 3, 1], "D_tc": [0, 1, 1, 1],
              "D_ta": [0, 2, 2, 2], "R": [1, 0.5, 0.7, 3]}  # fmt: skip
    write_arrays(
        path, {f"{how} {key}": np.array(each) for how in ("transfer", "white-box") for key, each in arrays.items()}
    )
    transfer, white_box = budget_and_removal("cpu", place)
    assert "is below 1 for 66.7 % [20.8, 93.9] of n = 3 FGSM images, transfer" in transfer
    assert "than the attacked one was for 33.3 % [6.1, 79.2]. Without" in transfer
    assert "for 100.0 % [43.9, 100.0] and 0.0 % [0.0, 56.1]." in transfer
    assert "images, white-box" in white_box


def test_the_order_of_the_attacks(place: Place) -> None:
    """And how near clean accuracy images stay that were made to cross the source's boundary, on their own images."""
    for attack, k in {"fgsm": 80, "bim": 50, "carlini_wagner": 97, "ddn": 98}.items():
        for job in transfers(attack):
            store(job, first(k), place, l2=2.5 if attack == "ddn" else 1.5)
    told = orders("table2", "cpu", place)
    assert told[1:] == [
        "Measured, transfer: BIM 50.0 < FGSM 80.0 < C&W 97.0 < DDN 98.0 (n = 100); 5 of 5 pairs of "
        "attacks that differ in both are in the reported order."
    ]
    for job in measurements("table2", "cpu"):
        if job.target.role == "ours" and job.attack is None:
            store(job, first(200, n=200), place)
    assert orders("table2", "cpu", place) == [
        *told,
        "Images across the source's boundary leave “ours” 97.0 % instead of 100.0 % under C&W, whose images are moved "
        "by 1.50 (median L2), and 98.0 % instead of 100.0 % under DDN, whose images are moved by 2.50 (median L2).",
    ]
    for job in transfers("ddn"):
        job.file(place).unlink()
        store(job, first(98), place, l2=0.5)
    assert orders("table2", "cpu", place)[-1].endswith("0.50 (median L2): C&W did not converge in its steps.")


def test_the_budget_that_halves_the_accuracy(place: Place) -> None:
    """Accuracy falls by a tenth each budget: through one half at 0.5."""
    for series in figure6("cpu").values():
        for k, job in enumerate(series):
            if not job.file(place).exists():
                store(job, first(100 - 10 * k), place)
    text = budget_and_removal("cpu", place)[0]
    assert f"transfer: 0.50 on “No defense”, 0.50 on “{OTHER}”, 0.50 on “ours”" in text
