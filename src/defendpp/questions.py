"""What the study is asked: pairs of rows of the tables, the columns that decide between them, what the paper says.

In groups, each of which has a paragraph in what the study concludes.
"""

from defendpp.findings import Question
from defendpp.paper import TABLES

OTHER = "No defense, another seed"
FARTHER = ("C&W", "DDN")
"""Transferred, these stop just across the boundary of their source: high accuracies mean little."""
NETWORKS = ("VGG16", "ResNet-50")
SAME_SOURCE = "By the released scripts its baseline, “No defense”, is the very network that the images were made on."
NO_NOISE = "The paper has no network trained with noise alone."

UNDEFENDED = (
    Question(
        "Does Defend++ beat an undefended network that is merely not the source? (MNIST)",
        "table2",
        (
            ("ours", OTHER),
            ("ours, alternating", OTHER),
            ("ours, fine-tuned", "No defense, fine-tuned"),
            ("ours, fine-tuned", OTHER),
        ),
        beside=(*FARTHER, "Clean"),
        claim="“Significantly improves the performance of the baseline over any adversarial attack” (section 4.2).",
        reading=SAME_SOURCE,
    ),
    Question(
        "Does Defend++ beat an undefended network that is merely not the source, at a larger budget? (MNIST)",
        "variations",
        (
            ("ours", OTHER),
            ("ours, fine-tuned", "No defense, fine-tuned"),
            ("ours, fine-tuned, 0.8 of the full scale", "No defense, fine-tuned"),
        ),
        columns=("FGSM 0.3", "BIM 0.3"),
        beside=("FGSM, 8 bits", "BIM, 8 bits"),
        claim="“The baseline curve is substantially shifted to the right” (section 4.5, figure 6, of FGSM).",
        reading=SAME_SOURCE,
    ),
    Question(
        "Does Defend++ beat an undefended network that is merely not the source? (CIFAR-10)",
        "table3",
        (("ours", OTHER), ("ours, fine-tuned", "No defense, fine-tuned")),
        columns=("FGSM", "BIM"),
        beside=(*FARTHER, "Clean"),
        claim="“Significantly improves the defense performance over the baseline (No defense) on all the attacks” "
        "(section 4.3).",
        reading=SAME_SOURCE,
    ),
    Question(
        "Does Defend++ beat an undefended network where both are fine-tuned from the source? (ImageNet)",
        "table4",
        (("ours", "No defense, fine-tuned"),),
        columns=("FGSM", "BIM"),
        beside=(*FARTHER, "Clean"),
        claim="The baseline is “a total failure on BIM, C&W, and DDN”, which Defend++ “substantially improves” "
        "(section 4.4).",
        reading=SAME_SOURCE,
    ),
    *(
        Question(
            f"Does Defend++ beat an undefended network of another seed, with other networks? ({data})",
            table,
            tuple((f"ours ({network})", f"{OTHER} ({network})") for network in NETWORKS),
            columns=("FGSM", "BIM"),
            beside=FARTHER,
            claim="“Clearly improves the baseline on both adversarial and clean examples” (section 4.5).",
            reading=SAME_SOURCE,
        )
        for table, data in (("table5", "MNIST"), ("table6", "CIFAR-10"))
    ),
    *(
        Question(
            f"Does Defend++ beat an undefended network, shown images of another architecture? ({data})",
            table,
            (("ours", OTHER),),
            columns=tuple(each.name for each in TABLES[table].columns if each.network != each.source),
            claim="“Significantly improves the performance over baseline in the transfer setting” (section 4.5).",
        )
        for table, data in (("table7", "MNIST"), ("table8", "CIFAR-10"))
    ),
)
PARTS = (
    Question(
        "Does the multi-scale low-pass objective matter?",
        "table1",
        (("ours", "ours w/o MS-LP"), ("ours", "ours w/ MS-LI")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
        claim="It “clearly improves the defense accuracy on nearly every attack”, and linear interpolation is “in "
        "general inferior” (section 4.2).",
    ),
    Question(
        "Does the pyramid with its H modules matter?",
        "table1",
        (("ours", "Hourglass"), ("ours", "Hourglass+SC"), ("ours", "Hourglass+SA")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
        claim="The hourglass is “clearly lower than ours on every entry”, and skip connections show “no significant "
        "improvement” over it (section 4.2).",
    ),
    Question(
        "Does sharing more blocks help?",
        "table1",
        tuple(("4 shared blocks", each) for each in ("1 shared block", "2 shared blocks", "3 shared blocks")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
        claim="“Sharing four blocks performs best”, three very close to it (section 4.2).",
    ),
)
BASELINES = (
    Question(
        "Under the paper's protocol, against adversarial training and ComDefend (MNIST)",
        "table2",
        tuple(("ours", each) for each in ("Adv. FGSM", "Adv. FGSM, fixed set", "Adv. DDN", "Adv. PGD", "ComDefend")),
        beside=(*FARTHER, "Clean"),
        claim="Below Adv. FGSM on FGSM, far above it on BIM; under PGD “clearly the best”; “in general better” than "
        "Adv. PGD (section 4.2).",
    ),
    Question(
        "Under the paper's protocol, against adversarial training and ComDefend (CIFAR-10)",
        "table3",
        tuple(("ours", each) for each in ("Adv. FGSM", "Adv. DDN", "ComDefend")),
        columns=("FGSM", "BIM", *FARTHER),
        beside=("Clean",),
        claim="“Clearly better than Adv. FGSM/DDN and ComDefend on C&W and DDN attacks while inferior to Adv. FGSM on "
        "FGSM attack” and to “ComDefend on BIM attack” (section 4.3).",
    ),
    Question(
        "Under the paper's protocol, against adversarial training (ImageNet)",
        "table4",
        (("ours", "Adv. FGSM"),),
        columns=("FGSM", "BIM", *FARTHER),
        beside=("Clean",),
        claim="“Better result than Adv.FGSM on every attack except FGSM” (section 4.4).",
    ),
)
NOISE_ALONE = (
    Question(
        "What does the decoder add to noise as weak as the paper's? (MNIST)",
        "table2",
        (("ours + GN", "noise alone"),),
        beside=FARTHER,
        reading=NO_NOISE,
    ),
    Question(
        "What does the decoder add to noise as weak as the paper's? (CIFAR-10)",
        "table3",
        (("ours + GN", "noise alone"),),
        columns=("FGSM", "BIM"),
        beside=(*FARTHER, "Clean"),
        reading=NO_NOISE,
    ),
)
NOISE = (
    Question(
        "What does noise as weak as the paper's add to the decoder? (MNIST)",
        "table2",
        (("ours + GN", "ours"),),
        beside=(*FARTHER, "Clean"),
        claim="FGSM and BIM are “clearly improved”, the others “slightly declined” (section 4.2).",
    ),
    Question(
        "What does noise as weak as the paper's add to the decoder? (CIFAR-10)",
        "table3",
        (("ours + GN", "ours"),),
        columns=("FGSM", "BIM"),
        beside=(*FARTHER, "Clean"),
        claim="“Further improved especially against simple attacks (FGSM and BIM) but the accuracy on clean images "
        "drops by one point” (section 4.3).",
    ),
)
WHITE_BOX = (
    Question(
        "White-box, is Defend++ harder to fool than an undefended network? (MNIST)",
        "table2",
        (
            ("ours", OTHER),
            ("ours, alternating", OTHER),
            ("ours, fine-tuned", "No defense, fine-tuned"),
            ("ours + GN", OTHER),
            ("ours + GN", "noise alone"),
        ),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
        together=True,
        nearest=FARTHER,
        claim="Its networks “are pure white-box classifiers” (section 4.5).",
    ),
    Question(
        "White-box, is Defend++ harder to fool than an undefended network? (CIFAR-10)",
        "table3",
        (
            ("ours", OTHER),
            ("ours, fine-tuned", "No defense, fine-tuned"),
            ("ours + GN", OTHER),
            ("ours + GN", "noise alone"),
        ),
        "white-box",
        ("FGSM", "BIM", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
    *(
        Question(
            f"White-box, is Defend++ harder to fool than an undefended network? ({data}, other networks)",
            table,
            tuple((f"ours ({network})", f"{OTHER} ({network})") for network in NETWORKS),
            "white-box",
            ("FGSM", "BIM", "Cascade"),
            together=True,
            nearest=FARTHER,
        )
        for table, data in (("table5", "MNIST"), ("table6", "CIFAR-10"))
    ),
    Question(
        "White-box, is Defend++ harder to fool than an undefended network? (ImageNet)",
        "table4",
        (("ours", "No defense, fine-tuned"),),
        "white-box",
        ("FGSM", "BIM"),
        together=True,
        nearest=FARTHER,
    ),
)
WHITE_BOX_TRAINED = (
    Question(
        "White-box, against adversarial training (MNIST)",
        "table2",
        (("ours", "Adv. FGSM"), ("ours", "Adv. DDN"), ("ours", "Adv. PGD")),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
    Question(
        "White-box, against adversarial training (CIFAR-10)",
        "table3",
        (("ours", "Adv. FGSM"), ("ours", "Adv. DDN")),
        "white-box",
        ("FGSM", "BIM", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
)
WHITE_BOX_PURIFIED = (
    Question(
        "White-box, where the attacker knows what stands before the classifier: ComDefend",
        "table2",
        (("ComDefend", OTHER), ("ours", "ComDefend")),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
        claim="“In a fair comparison with Defend++, where the reformer is known to the attacker in white-box scenario, "
        "ComDefend is no better than the baseline” (section 4.2).",
        reading="By the released scripts its classifier alone was attacked, on reformed images: row “ComDefend-wb”.",
    ),
)
QUESTIONS = (
    *UNDEFENDED, *PARTS, *BASELINES, *NOISE_ALONE, *NOISE, *WHITE_BOX, *WHITE_BOX_TRAINED, *WHITE_BOX_PURIFIED,
)  # fmt: skip
