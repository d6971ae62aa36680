"""Sentences from records written by hand: their numbers, their tests and their words."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from study_records import first, of_role, store

from defendpp import intervals
from defendpp.findings import Contrast, Question, answers, contrast, failures, in_short
from defendpp.paper import TABLES
from defendpp.questions import OTHER, QUESTIONS
from defendpp.study import Measurement, Place, measurements

ROOT = Path(__file__).parent.parent
AGAINST_OTHER = Question("?", "table2", (("ours", OTHER),), columns=("BIM",))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "work")


def transfers(role: str, attack: str = "bim") -> list[Measurement]:
    """By seed."""
    return of_role(role, attack, white_box=False)


def white_boxes(role: str, attack: str) -> list[Measurement]:
    """By seed."""
    return of_role(role, attack, white_box=True)


def test_every_question_is_about_rows_and_columns_that_there_are() -> None:
    for question in QUESTIONS:
        table = TABLES[question.table]
        assert {name for pair in question.pairs for name in pair} <= {row.name for row in table.rows}
        named = {*question.columns, *question.beside, *question.nearest}
        assert named <= {column.name for column in table.columns}


def test_three_seeds_are_paired_and_averaged(place: Place) -> None:
    for job, other, k in zip(transfers("ours"), transfers("none"), (60, 70, 80), strict=True):
        store(job, first(k), place)
        store(other, first(40), place)
    found = contrast("table2", "ours", OTHER, ["BIM"], "transfer", "cpu", place)
    pairs = [intervals.paired_difference(np.array(first(k)), np.array(first(40))) for k in (60, 70, 80)]
    assert found is not None
    assert found.difference == intervals.mean_difference(pairs)
    assert (found.best, found.seeds) == (0.8, 3)
    (text,) = map(str, answers(AGAINST_OTHER, "cpu", place))
    assert text.startswith(f"“ours” against “{OTHER}”: **higher under BIM**. BIM +30.0 points [")
    assert "], 3 seeds (+20.0, +30.0, +40.0), n = 100." in text
    table = in_short({AGAINST_OTHER: answers(AGAINST_OTHER, "cpu", place)})
    line = f"| {AGAINST_OTHER.text} | “ours” against “{OTHER}” | paper's protocol | **higher under BIM** | +30.0 ["
    assert table.splitlines()[4].startswith(line)
    assert table.splitlines()[4].endswith("] | 3 |")


@pytest.mark.parametrize(("left", "told"), [(60, True), (40, False)])
def test_images_that_hardly_fool_their_own_source_are_told(left: int, told: bool, place: Place) -> None:
    for role in ("ours", "none"):
        store(transfers(role)[0], first(80), place)
    store(white_boxes("source", "bim")[0], first(left), place)
    (text,) = map(str, answers(AGAINST_OTHER, "cpu", place))
    (answer,) = answers(AGAINST_OTHER, "cpu", place)
    weak = "; images of BIM fool their own source less than half the time" * told
    assert answer.verdict == f"no difference beyond 5 points under BIM{weak}"
    assert ("; of these images their own source gets right 60.0 % under BIM: little can transfer." in text) == told


def test_one_verdict_is_of_the_seeds_of_the_column_that_has_the_most(place: Place) -> None:
    """FGSM was measured of one seed alone: it is told and not judged, and takes no seed of BIM away."""
    for attack, seeds in (("bim", (0, 1, 2)), ("fgsm", (1,))):
        for seed in seeds:
            store(transfers("ours", attack)[seed], first(90), place)
            store(transfers("none", attack)[seed], first(40 + seed), place)
    question = Question("?", "table2", (("ours", OTHER),), columns=("FGSM", "BIM"))
    (answer,) = answers(question, "cpu", place)
    assert (answer.verdict, answer.seeds) == ("higher under BIM (not judged, of other training seeds: FGSM)", 3)
    assert "FGSM +49.0 points" in str(answer)


def test_columns_of_unlike_seeds_are_not_judged_together(place: Place) -> None:
    for attack, seeds in (("fgsm", (0, 1)), ("bim", (1, 2))):
        for seed in seeds:
            store(transfers("ours", attack)[seed], first(90), place)
            store(transfers("none", attack)[seed], first(40), place)
    question = Question("?", "table2", (("ours", OTHER),), columns=("FGSM", "BIM"))
    (answer,) = answers(question, "cpu", place)
    assert (answer.verdict, answer.seeds) == ("higher under FGSM (not judged, of other training seeds: BIM)", 2)


def test_taken_together_columns_have_the_seeds_in_common(place: Place) -> None:
    for attack, seeds in (("bim", (0, 1, 2)), ("pgd", (1,))):
        for seed in seeds:
            store(white_boxes("ours", attack)[seed], first(90 if seed == 1 else 10), place)
            store(white_boxes("none", attack)[seed], first(40), place)
    question = Question("?", "table2", (("ours", OTHER),), "white-box", ("BIM", "PGD"), together=True)
    (answer,) = answers(question, "cpu", place)
    assert (answer.verdict, answer.seeds) == ("higher", 1)
    assert str(answer).count("+50.0 points") == 3


def test_two_seeds_are_told_and_not_printed_bold(place: Place) -> None:
    for job, other in zip(transfers("ours")[:2], transfers("none")[:2], strict=True):
        store(job, first(90), place)
        store(other, first(20), place)
    (text,) = map(str, answers(AGAINST_OTHER, "cpu", place))
    assert "higher under BIM, so far of 2 of 3 training seeds. BIM +70.0" in text
    assert "**" not in text
    interval = text.split(" points ")[1].split("]")[0]
    table = in_short({AGAINST_OTHER: answers(AGAINST_OTHER, "cpu", place)})
    assert f"| higher under BIM | +70.0 {interval}] | 2 of 3 |" in table


def test_of_one_pair_a_word_asks_for_interval_and_test() -> None:
    for p, word in ((0.064, "no difference beyond 5 points"), (0.04, "lower")):
        assert Contrast(intervals.Difference(-0.004, -0.01, -0.0001, p, 2000), 0.02, 1).word == word


def test_one_seed_speaks_of_one_pair_of_networks_only(place: Place) -> None:
    store(transfers("ours")[1], first(90), place)
    store(transfers("none")[1], first(20), place)
    (text,) = map(str, answers(AGAINST_OTHER, "cpu", place))
    assert "higher under BIM, so far of one pair of networks, which is no verdict on the method. BIM +70.0" in text
    assert "**" not in text
    interval = text.split(" points ")[1].split("]")[0]
    table = in_short({AGAINST_OTHER: answers(AGAINST_OTHER, "cpu", place)})
    assert f"| this pair: higher under BIM | +70.0 {interval}] | 1 of 3 |" in table


@pytest.mark.parametrize(
    ("right", "n", "word"),
    [((4990, 5000, 5010), 10_000, "no difference beyond 5 points"), ((44, 50, 56), 100, "undecided")],
)
def test_no_difference_is_claimed_only_where_the_interval_is_narrow(
    right: tuple[int, ...], n: int, word: str, place: Place
) -> None:
    for job, other, k in zip(transfers("ours"), transfers("none"), right, strict=True):
        store(job, first(k, n), place)
        store(other, first(n // 2, n), place)
    (answer,) = answers(AGAINST_OTHER, "cpu", place)
    assert answer.verdict == f"{word} under BIM"


def test_the_papers_own_difference_stands_beside_ours(place: Place) -> None:
    for role in ("ours", "ours + GN"):
        for job in transfers(role):
            store(job, first(50), place)
    (text,) = map(str, answers(Question("?", "table2", (("ours + GN", "ours"),), columns=("BIM",)), "cpu", place))
    assert text.endswith("(paper +1.07).")  # 56.44 - 55.37


def test_white_box_it_is_the_worst_of_all_attacks_that_counts(place: Place) -> None:
    """Each of two attacks leaves one half of the images right: on ours the same half, on the other another each."""
    question = Question("?", "table2", (("ours", OTHER),), "white-box", ("BIM", "PGD"), together=True)
    half = first(50)
    for one, two, other, too in zip(
        *(white_boxes(role, attack) for role in ("ours", "none") for attack in ("bim", "pgd")), strict=True
    ):
        store(one, half, place)
        store(two, half, place)
        store(other, half, place)
        store(too, half[::-1], place)
    (text,) = map(str, answers(question, "cpu", place))
    assert "**higher**. BIM +0.0 points" in text  # no column by itself
    assert "PGD +0.0 points" in text
    assert "all of these +50.0 points" in text


def test_where_hardly_an_image_is_left_nothing_is_told(place: Place) -> None:
    for job, other in zip(white_boxes("ours", "bim"), white_boxes("none", "bim"), strict=True):
        store(job, first(1), place)
        store(other, first(0), place)
    (text,) = map(str, answers(Question("?", "table2", (("ours", OTHER),), "white-box", ("BIM",)), "cpu", place))
    assert "**both keep at most 1 % under BIM**" in text
    assert "BIM both at most 1.0 %" in text
    for job, other in zip(white_boxes("ours", "pgd"), white_boxes("none", "pgd"), strict=True):
        store(job, first(90), place)
        store(other, first(10), place)
    (text,) = map(str, answers(Question("?", "table2", (("ours", OTHER),), "white-box", ("BIM", "PGD")), "cpu", place))
    assert "**higher under PGD; both keep at most 1 % under BIM**" in text
    for number, (job, other) in enumerate(zip(white_boxes("ours", "fgsm"), white_boxes("none", "fgsm"), strict=True)):
        store(job, first(500 + number % 2, 1000), place)
        store(other, first(500, 1000), place)
    (text,) = map(str, answers(Question("?", "table2", (("ours", OTHER),), "white-box", ("BIM", "FGSM")), "cpu", place))
    assert "**no difference beyond 5 points under FGSM; both keep at most 1 % under BIM**" in text


FARTHER_OUT = Question("?", "table2", (("ours", OTHER),), "white-box", ("C&W",), nearest=("C&W", "DDN"))


def distances(place: Place, ours: tuple[float, ...]) -> None:
    """On ours the nearer of both attacks needs so much, by seed, and 1 on the other; no image withstands both."""
    for role, far in (("ours", ours), ("none", (1.0,) * len(ours))):
        for attack, factor, kept in (("carlini_wagner", 3, 0), ("ddn", 1, 10)):
            for job, each in zip(white_boxes(role, attack), far, strict=False):
                store(job, first(kept), place, l2=factor * each)


def test_how_much_farther_the_nearer_attack_goes(place: Place) -> None:
    """What one attack fails on the other one reaches."""
    distances(place, (1.5, 1.4, 1.6))
    (text,) = map(str, answers(FARTHER_OUT, "cpu", place))
    assert "**both keep at most 1 % under C&W; an attack in L2 must go farther**" in text
    assert "+0.50 [+0.25, +0.75], 3 seeds (+0.50, +0.40, +0.60), n = 100 or more" in text  # 4.3 x 0.1 / sqrt(3)


def test_how_far_of_fewer_seeds_than_the_verdict_is_no_part_of_it(place: Place) -> None:
    distances(place, (1.5,))
    for job, other in zip(white_boxes("ours", "bim"), white_boxes("none", "bim"), strict=True):
        store(job, first(90), place)
        store(other, first(10), place)
    (answer,) = answers(replace(FARTHER_OUT, columns=("BIM",)), "cpu", place)
    assert answer.verdict == "higher under BIM; in L2 not judged, of fewer training seeds"
    assert answer.seeds == 3


def test_how_far_is_told_also_where_something_withstands(place: Place) -> None:
    distances(place, (1.5, 1.4, 1.6))
    for job, other in zip(white_boxes("ours", "bim"), white_boxes("none", "bim"), strict=True):
        store(job, first(90), place)
        store(other, first(10), place)
    (answer,) = answers(replace(FARTHER_OUT, columns=("BIM",)), "cpu", place)
    assert answer.verdict == "higher under BIM; an attack in L2 must go farther"


def test_seeds_that_disagree_on_how_far_decide_nothing(place: Place) -> None:
    distances(place, (1.5, 0.9, 1.1))
    (text,) = map(str, answers(FARTHER_OUT, "cpu", place))
    assert "no clear difference in L2**" in text


def test_how_far_of_one_seed_is_a_number_and_no_direction(place: Place) -> None:
    distances(place, (1.5,))
    (text,) = map(str, answers(FARTHER_OUT, "cpu", place))
    assert (
        "both keep at most 1 % under C&W; an attack in L2 must go +0.50 (median), so far of one pair of networks"
        in text
    )


def test_attacks_that_failed_are_named(place: Place) -> None:
    """BIM leaves more than what was made on the source; FGSM more than BIM, which is no failure."""
    bims, fgsms = white_boxes("ours", "bim"), white_boxes("ours", "fgsm")
    for bim, fgsm in zip(bims[:2], fgsms, strict=False):
        store(bim, first(60), place)
        store(fgsm, first(80), place)
    assert failures("table2", "cpu", place) == []
    for shown, kept in zip(transfers("ours")[:2], (30, 40), strict=True):
        store(shown, first(kept), place)
    (text,) = failures("table2", "cpu", place)
    assert text == "“ours”: BIM leaves 60.0 %, BIM made on the source 35.0 % (n = 100, 2 seeds)."


def test_a_failed_attack_is_no_surer_for_the_same_images_on_three_networks(place: Place) -> None:
    """Of one seed the interval of 12 points more holds 0; as if of 300 images it would not."""
    for job, shown in zip(white_boxes("ours", "bim"), transfers("ours"), strict=True):
        store(job, [True] * 42 + [False] * 58, place)
        store(shown, [False] * 42 + [True] * 30 + [False] * 28, place)
    assert failures("table2", "cpu", place) == []


def test_what_may_go_any_distance_fails_where_it_leaves_images_right(place: Place) -> None:
    for job in white_boxes("ours", "ddn"):
        store(job, first(20), place)
    store(white_boxes("ours", "carlini_wagner")[0], first(1), place)
    assert failures("table2", "cpu", place) == ["“ours”: DDN leaves 20.0 % at any distance (n = 100, 3 seeds)."]


def test_a_seed_is_compared_with_itself_only(place: Place) -> None:
    store(white_boxes("ours", "bim")[0], first(60), place)
    store(white_boxes("ours", "pgd")[1], first(30), place)
    assert failures("table2", "cpu", place) == []


def test_of_unlike_many_images_those_count_that_both_have(place: Place) -> None:
    """As of ComDefend, whose white-box attacks are dear. Of its images the first row has 60 of 80 right."""
    store(transfers("ours")[0], first(80), place)
    store(transfers("none")[0], first(40, n=80), place)
    found = contrast("table2", "ours", OTHER, ["BIM"], "transfer", "cpu", place)
    assert found is not None
    assert (found.difference.value, found.difference.n, found.best) == (0.25, 80, 0.75)


def test_other_images_are_refused(place: Place) -> None:
    store(transfers("ours")[0], first(50), place)
    store(transfers("none")[0], first(50), place, beginning=1)
    with pytest.raises(ValueError, match="saw different images under BIM"):
        contrast("table2", "ours", OTHER, ["BIM"], "transfer", "cpu", place)


def test_what_was_not_measured_is_said_to_be(place: Place) -> None:
    found = [answer for question in QUESTIONS for answer in answers(question, "cpu", place)]
    assert {(each.verdict, each.seeds) for each in found} == {("not measured yet", 0)}
    table = in_short({AGAINST_OTHER: answers(AGAINST_OTHER, "cpu", place)}).splitlines()
    assert table[-1] == f"- ? “ours” against “{OTHER}”."
    assert not any(line.startswith("| ?") for line in table)
    store(white_boxes("ours", "bim")[0], first(60), place)
    store(white_boxes("none", "bim")[0], first(40), place)
    question = Question("?", "table2", (("ours", OTHER),), "white-box", ("BIM", "PGD"), together=True)
    (text,) = map(str, answers(question, "cpu", place))
    assert text.startswith(f"“ours” against “{OTHER}”: not measured yet: PGD. BIM +20.0 points")


def test_clean_accuracy_is_the_price_where_it_differs(place: Place) -> None:
    clean = {role: [each for each in measurements("table2", "cpu") if each.target.role == role and not each.attack]
             for role in ("ours", "none")}  # fmt: skip
    question = Question("?", "table2", (("ours", OTHER),), columns=("BIM",), beside=("Clean",))
    for job, other in zip(transfers("ours"), transfers("none"), strict=True):
        store(job, first(90), place)
        store(other, first(10), place)
    for kept, verdict in ((100, "higher under BIM"), (80, "higher under BIM; Clean -20.0 points")):
        for job, other in zip(clean["ours"], clean["none"], strict=True):
            for each, k in ((job, kept), (other, 100)):
                each.file(place).unlink(missing_ok=True)
                store(each, first(k), place)
        (answer,) = answers(question, "cpu", place)
        assert answer.verdict == verdict


def test_the_page_holds_every_table_and_says_what_is_missing(place: Place) -> None:
    store(transfers("ours")[0], first(50), place)
    page = runpy.run_path(str(ROOT / "docs" / "study.py"))["page"](place)
    for number in range(1, 9):
        assert f"\n## Table {number}\n" in page
    assert "1 of " in page
    assert "50.0 (40.4–59.6), seed 1" in page
    assert page.count("Not measured yet.") == 5


def test_a_price_of_fewer_seeds_is_no_part_of_the_verdict(place: Place) -> None:
    question = Question("?", "table2", (("ours", OTHER),), columns=("BIM",), beside=("Clean",))
    for job, other in zip(transfers("ours"), transfers("none"), strict=True):
        store(job, first(90), place)
        store(other, first(10), place)
    for role, kept in (("ours", 80), ("none", 100)):
        clean = [each for each in measurements("table2", "cpu") if each.target.role == role and not each.attack]
        store(clean[0], first(kept), place)
    (answer,) = answers(question, "cpu", place)
    assert answer.verdict == "higher under BIM"
    assert "Clean -20.0 points" in str(answer)
