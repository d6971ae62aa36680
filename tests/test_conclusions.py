"""What the study concludes, from answers and from records written by hand."""

from pathlib import Path

import pytest
from study_records import first, of_role, store

from defendpp import questions
from defendpp.conclusions import conclusions
from defendpp.findings import Answer, Contrast, Question, answers
from defendpp.intervals import Difference, MeanDifference
from defendpp.questions import QUESTIONS
from defendpp.study import Place, measurements


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def concluded(place: Place) -> str:
    asked = {question: answers(question, "cpu", place) for question in QUESTIONS}
    return "\n".join(conclusions(asked, "cpu", place))


def test_of_nothing_nothing_is_concluded(place: Place) -> None:
    assert concluded(place) == ""


def test_every_question_is_in_one_group() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS)


def test_verdicts_are_counted_and_unlike_rows_left_out(place: Place) -> None:
    """BIM: higher over three seeds; FGSM: nothing is left of either. A descendant of the source against a stranger to
    it is no part of the count."""
    for role, bim in (("ours", 90), ("none", 40), ("ours, fine-tuned", 0), ("none, fine-tuned", 0)):
        for job in of_role(role, "bim", white_box=False):
            store(job, first(bim), place)
        for job in of_role(role, "fgsm", white_box=False):
            store(job, first(0), place)
    told = concluded(place)
    expected = "4 comparisons over 3 training seeds: 1 higher, 3 with hardly an image left on either side."
    assert f"that are not the source**, under the paper's protocol, Defend++ in {expected}" in told


def test_what_cannot_be_told_from_chance_is_said_beside_the_papers_effects(place: Place) -> None:
    for job in measurements("table1", "cpu"):
        if job.attack is None or job.attack.name not in ("fgsm", "bim") or job.target.role == "source":
            continue
        kept = {"ours": 50, "without MS-LP": 49}.get(job.target.role)
        if kept is not None:
            store(job, first(kept + 4 * job.target.seed), place)
    told = concluded(place)
    assert "**The parts of Defend++** that table 1 removes, in 2 comparisons: 2 " in told
    assert "The effects that the paper prints are 0.3 to 8.5 points, of one training each." in told
    assert (
        "“ours” alone differs by 8 points under FGSM and 8 points under BIM from one training seed to another." in told
    )


@pytest.mark.parametrize(("kept", "said"), [(0, True), (40, False)])
def test_white_box_it_is_no_defence_only_where_every_pair_fell(kept: int, said: bool, place: Place) -> None:
    for role in ("ours", "none"):
        for job in measurements("table2", "cpu"):
            if job.target.role == role and job.attack is not None and job.is_white_box:
                store(job, first(kept if role == "ours" else 0), place)
    told = concluded(place)
    assert f"the undefended row at most 1 % right in {int(said)} of 1 pairs of rows" in told
    assert ("it is no defence" in told) == said


def test_printed_numbers_that_fit_white_box_alone_are_named(place: Place) -> None:
    for job in of_role("ours", "bim", white_box=False):
        store(job, first(55), place)
    for is_white, kept in ((False, 80), (True, 10)):
        for job in of_role("adv-fgsm", "bim", white_box=is_white):
            store(job, first(kept), place)
    told = concluded(place)
    assert (
        "lie in the interval of what we measured under the paper's protocol in 1 of 1 cells. Those of “Adv. FGSM” "
        in told
    )
    assert "under BIM are reached white-box and not under that protocol" in told


def test_noise_is_held_against_noise_alone(place: Place) -> None:
    asked: dict[Question, list[Answer]] = {question: [] for question in QUESTIONS}
    one = Contrast(Difference(0.02, 0.01, 0.03, 0.001, 100), 0.9, 1)
    three = Contrast(MeanDifference(0.06, 0.04, 0.08, 100, (0.05, 0.06, 0.07)), 0.9, 3)
    for question, found in zip(questions.NOISE_ALONE, (three, one), strict=True):
        asked[question] = [Answer(question.pairs[0], "higher", "", found.seeds, 3, {"BIM": found})]
    (told,) = conclusions(asked, "cpu", place)
    assert told.endswith("in 2 comparisons: 2 higher, by +4.0 points in the mean.")
