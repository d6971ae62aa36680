"""Doubts that made-up records give cause for, and none where they give none."""

import numpy as np
import pandas as pd
from record_rows import BUDGETS, N, rows

from defendpp import doubts


def test_a_network_at_chance_is_named() -> None:
    labels = np.arange(40) % 4
    frames = []
    for name, right in (("lost", labels == 0), ("sound", labels < 3)):
        frames.append(rows(name, "none", 0).assign(label=labels, correct=right))
    (doubt,) = doubts.in_records(pd.concat(frames))
    assert doubt.startswith("Doubt: “lost” is not shown to be better than chance on clean images (25.0 %")
    assert "the commonest class alone is 25.0 %" in doubt
    alike = rows("any", "none", N).assign(label=0)
    assert doubts.in_records(alike) == [
        "Doubt: all n = 40 images are of one class, so that “any” cannot be told from a network that always names it."
    ]


def test_a_minimal_norm_attack_that_another_undercuts() -> None:
    far = rows("a", "carlini_wagner", 0, norm="l2", distance=3.6)
    near = rows("a", "ddn", 0, norm="l2", distance=2.4)
    (doubt,) = doubts.in_records(pd.concat([far, near]))
    assert doubt.startswith("Doubt: on “a”, C&W goes farther than DDN (L2 +0.62 [+0.42, +0.81], n = 40)")
    ways = [far, near.assign(settings='{"gradient": "identity"}'), near.assign(l2=9.0)]  # of two ways the nearer
    assert "C&W goes farther" in doubts.in_records(pd.concat(ways))[0]
    assert doubts.in_records(pd.concat([far, near.assign(l2=0.97 * far["l2"])])) == []  # not by a twentieth


def test_doubts() -> None:
    masked = [rows("a", "fgsm", 10, epsilon=0.2), rows("a", "pgd", 30, epsilon=0.2)]
    (doubt,) = doubts.in_records(pd.concat(masked))
    assert doubt.startswith("Doubt: on “a”, white-box PGD at L∞ ≤ 0.2 leaves more images right than one step of FGSM")
    transferred = [rows("a", "pgd", 30, epsilon=0.2), rows("a", "pgd", 10, epsilon=0.2, source="b")]
    (doubt,) = doubts.in_records(pd.concat(transferred))
    assert "leaves more images right than PGD from “b” (+50.0 points" in doubt
    sound = [rows("a", "fgsm", 30, epsilon=0.2), rows("a", "pgd", 10, epsilon=0.2)]
    assert doubts.in_records(pd.concat(sound)) == [
        "In 1 paired comparison at the same budget, neither another attack nor transferred images did better, "
        "beyond chance, than one through the network's own gradients."
    ]
    several = [rows("a", name, n, epsilon=0.2) for name, n in (("bim", 30), ("fgsm", 20), ("cascade", 5))]
    (doubt,) = [each for each in doubts.in_records(pd.concat(several)) if "BIM" in each]
    assert "leaves more images right than Cascade (+" in doubt
    (doubt,) = doubts.in_records(rows("a", "fgsm", 30, epsilon=0.2))
    assert "nothing but one step or random search (FGSM) was tried at L∞ ≤ 0.2" in doubt
    short = rows("a", "pgd", 30, epsilon=0.2).assign(settings='{"steps": 1}')
    (doubt,) = doubts.in_records(pd.concat([short, rows("a", "square", 30, epsilon=0.2)]))
    assert "nothing but one step or random search (PGD and Square) was tried" in doubt
    lost = rows("a", "ddn", 0, norm="l2", distance=1.0).assign(success=np.arange(N) >= 3)
    (doubt,) = doubts.in_records(lost)
    assert "“a”, DDN found nothing for 3 of 40 images, although it may go any distance" in doubt
    assert doubts.in_records(lost.assign(success=np.arange(N) >= 1)) == []
    itself = [rows("a", "pgd", 30, epsilon=0.2), rows("a", "pgd", 10, epsilon=0.2, source="a")]
    assert doubts.in_records(pd.concat(itself)) == []
    for distance, fixed, kept, weaker, stronger in (
        (4.0, "pixel_flips", 10, "DDN", "Pixel flips"),
        (1.0, "pgd", 30, "PGD", "DDN"),
    ):
        minimal = rows("a", "ddn", 0, norm="l2", distance=distance)
        budgeted = rows("a", fixed, kept, norm="l2", epsilon=1.0)
        elsewhere = rows("a", "pgd", 0, epsilon=0.2)  # in the other norm
        (doubt,) = doubts.in_records(pd.concat([minimal, budgeted, elsewhere]))
        assert f"white-box {weaker} at L2 ≤ 1 leaves more images right than {stronger} (" in doubt
    chance = [rows("a", "fgsm", 30, epsilon=0.2), rows("a", "pgd", 31, epsilon=0.2)]
    assert not doubts.in_records(pd.concat(chance))[0].startswith("Doubt")


def test_other_records_that_leave_fewer_right_are_told_of() -> None:
    shown = pd.concat([rows("a", "none", N), rows("a", "fgsm", 30, epsilon=0.2), rows("b", "fgsm", 30, epsilon=0.2)])
    stronger = rows("a", "pgd", 10, epsilon=0.2)
    (told,) = doubts.overlooked(shown, pd.concat([stronger, rows("b", "pgd", 35, epsilon=0.2)]), BUDGETS)
    assert "leave “a” at most 25.0 % [" in told
    assert "at L∞ ≤ 0.2, where those shown leave 75.0 %" in told
    trial = rows("a", "bim", 0, epsilon=0.2).head(3)  # of few images; another seed; more images
    reseeded = rows("a", "fgsm", 10, epsilon=0.2).assign(seed=4)
    more = stronger.assign(image=stronger["image"] + 5)
    assert doubts.overlooked(shown, pd.concat([stronger, trial]), BUDGETS)[0].count("at most 17.5 %") == 1
    assert "at most 25.0 %" in doubts.overlooked(shown, reseeded, BUDGETS)[0]
    assert "at most 37.5 %" in doubts.overlooked(shown.head(N + N), more, BUDGETS)[0]
    for harmless in (
        rows("a", "pgd", 10, epsilon=0.3),
        rows("c", "pgd", 10, epsilon=0.2),
        stronger.assign(data="letters"),
        stronger.assign(image=stronger["image"] + N),
    ):
        assert doubts.overlooked(shown, harmless, BUDGETS) == []
