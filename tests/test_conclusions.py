"""What the study concludes, from answers and from records written by hand."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from study_records import first, of_role, store

from defendpp import questions
from defendpp.conclusions import conclusions
from defendpp.findings import Answer, Contrast, Question, answers
from defendpp.intervals import Difference, MeanDifference
from defendpp.questions import QUESTIONS
from defendpp.reported import held
from defendpp.study import Place, measurements

ONE = Contrast(Difference(0.02, 0.01, 0.03, 0.001, 100), 0.9, 1)
THREE = Contrast(MeanDifference(0.06, 0.04, 0.08, 100, (0.05, 0.06, 0.07)), 0.9, 3)
GROUPS = {
    "**Against undefended": questions.UNDEFENDED,
    "**The parts": questions.PARTS,
    "**Against adversarial": questions.BASELINES,
    "**Noise": questions.NOISE_ALONE,
    "**Defend++ with such noise": questions.NOISE,
    "**White-box**": questions.WHITE_BOX,
    "**White-box, against adversarial training": questions.WHITE_BOX_TRAINED,
    "**White-box, through its purifier": questions.WHITE_BOX_PURIFIED,
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def concluded(place: Place) -> str:
    asked = {question: answers(question, "cpu", place) for question in QUESTIONS}
    return "\n".join(conclusions(asked, held("cpu", place), "cpu"))


def of(question: Question, found: Contrast, weak: Sequence[str] = ()) -> list[Answer]:
    """Answers of all its pairs, from one difference."""
    column = question.columns[0]
    return [Answer(pair, "", "", found.seeds, 3, {column: found}, weak) for pair in question.pairs]


def test_of_nothing_nothing_is_concluded(place: Place) -> None:
    assert concluded(place) == ""


def test_every_group_of_questions_has_its_paragraph() -> None:
    assert sorted(each.text for group in GROUPS.values() for each in group) == sorted(each.text for each in QUESTIONS)
    for beginning, group in GROUPS.items():
        asked = {each: of(each, THREE) if each in group else [] for each in QUESTIONS}
        (told,) = conclusions(asked, [], "cpu")
        assert told.startswith(beginning)


def test_comparisons_are_counted_by_their_seeds() -> None:
    first_question, *_ = questions.NOISE_ALONE
    asked = {each: of(each, THREE if each == first_question else ONE) for each in questions.NOISE_ALONE}
    (told,) = conclusions({each: asked.get(each, []) for each in QUESTIONS}, [], "cpu")
    assert told.endswith(
        "in 1 comparison over 3 training seeds 1 higher; in 1 comparison of one pair of networks 1 higher."
    )


def test_what_tells_nothing_is_not_counted() -> None:
    """Attacks that failed on their own source, and transferred images of minimal norm."""
    (question, *_) = questions.BASELINES
    for weak, column in ((("FGSM",), "FGSM"), ((), "C&W")):
        answer = Answer(question.pairs[0], "", "", 3, 3, {column: THREE, "BIM": THREE}, weak)
        (told,) = conclusions({each: [answer] if each == question else [] for each in QUESTIONS}, [], "cpu")
        assert told.endswith("Defend++ resists: in 1 comparison over 3 training seeds 1 higher.")


def test_unlike_rows_are_no_part_of_the_count(place: Place) -> None:
    """BIM: higher over three seeds, or nothing is left of either. A descendant of the source against a stranger to it
    is left out; on ImageNet all descend from it."""
    for role, bim in (("ours", 90), ("none", 40), ("ours, fine-tuned", 0), ("none, fine-tuned", 0)):
        for job in of_role(role, "bim", white_box=False):
            store(job, first(bim), place)
    tallied = "over 3 training seeds 1 higher, 1 with hardly an image left on either side"
    assert f"Defend++ resists: in 2 comparisons {tallied}." in concluded(place)
    for job in measurements("table4", "cpu"):
        is_shown = job.attack is not None and job.attack.name == "bim" and not job.is_white_box
        if is_shown and job.target.role in ("ours", "none"):
            store(job, first(0), place)
    assert f"{tallied}; in 1 comparison of one pair of networks 1 with hardly" in concluded(place)


@pytest.mark.parametrize(("half", "unseen"), [(0.001, 0), (0.02, 10), (0.2, 16)])
def test_effects_that_could_not_be_seen_are_counted(half: float, unseen: int) -> None:
    """Of the paper's effects, from 0.33 to 8.47 points, 10 are below 2 points."""
    found = Contrast(MeanDifference(0.3, 0.3 - half, 0.3 + half, 100, (0.3, 0.3, 0.3)), 0.9, 3)
    asked: dict[Question, list[Answer]] = {question: [] for question in QUESTIONS}
    for question in questions.PARTS:
        asked[question] = [
            Answer(pair, "", "", 3, 3, dict.fromkeys(question.columns, found)) for pair in question.pairs
        ]
    (told,) = conclusions(asked, [], "cpu")
    assert "in 16 comparisons over 3 training seeds 16 higher. The effects that the paper prints here" in told
    assert f"{unseen} of 16 are smaller than half the width of our interval" in told
    assert ("no evidence that a part does nothing" in told) == (unseen > 0)


@pytest.mark.parametrize(("kept", "said"), [(0, True), (40, False)])
def test_white_box_no_network_resists_only_where_every_pair_fell(kept: int, said: bool, place: Place) -> None:
    for role in ("ours", "none", "ours + GN"):
        for job in measurements("table2", "cpu"):
            if job.target.role == role and job.attack is not None and job.is_white_box:
                store(job, first(kept if role == "ours" else 0), place)
    told = concluded(place)
    assert "in 2 comparisons over 3 training seeds" in told
    assert ("None of these networks resists an attacker who has the gradients." in told) == said


def test_what_is_printed_of_others_is_beside_the_comparison_with_them(place: Place) -> None:
    for job in of_role("ours", "bim", white_box=False):
        store(job, first(55), place)
    for is_white, kept in ((False, 80), (True, 10)):
        for job in of_role("adv-fgsm", "bim", white_box=is_white):
            store(job, first(kept), place)
    told = concluded(place)
    assert "Defend++ resists: in 1 comparison over 3 training seeds 1 lower. Of the numbers that the paper" in told
    assert "1 of 1 lie below what we measured under its protocol, 1 nearer to white-box accuracy" in told
    asked = {question: answers(question, "cpu", place) for question in QUESTIONS}
    larger = conclusions(asked, held("cpu", place), "cpu", "With a larger budget less is left.")
    assert any(each.endswith("rest on these. With a larger budget less is left.") for each in larger)
    assert "under the paper's protocol in 1 of 1 cells of 3 training seeds." in told
