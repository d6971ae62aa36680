"""What the study is asked: pairs of rows of the paper's tables, and the columns that decide between them."""

from defendpp.findings import Question
from defendpp.paper import TABLES

OTHER = "No defense, another seed"
FARTHER = ("C&W", "DDN")
"""Transferred, these stop just across the boundary of their source: high accuracies mean little."""
QUESTIONS = (
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
    ),
    Question(
        "Does Defend++ beat an undefended network that is merely not the source? (CIFAR-10)",
        "table3",
        (("ours", OTHER), ("ours + GN", "noise alone")),
        columns=("FGSM", "BIM"),
        beside=(*FARTHER, "Clean"),
    ),
    Question(
        "Does Defend++ beat an undefended network where both are fine-tuned from the source? (ImageNet)",
        "table4",
        (("ours", "No defense, fine-tuned"),),
        columns=("FGSM", "BIM"),
        beside=(*FARTHER, "Clean"),
    ),
    *(
        Question(
            f"Does Defend++ beat an undefended network of another seed, with other networks? ({data})",
            table,
            tuple((f"ours ({network})", f"{OTHER} ({network})") for network in ("VGG16", "ResNet-50")),
            columns=("FGSM", "BIM"),
            beside=FARTHER,
        )
        for table, data in (("table5", "MNIST"), ("table6", "CIFAR-10"))
    ),
    *(
        Question(
            f"Does Defend++ beat an undefended network, shown images of another architecture? ({data})",
            table,
            (("ours", OTHER),),
            columns=tuple(each.name for each in TABLES[table].columns if each.network != each.source),
        )
        for table, data in (("table7", "MNIST"), ("table8", "CIFAR-10"))
    ),
    Question(
        "Does the multi-scale low-pass objective matter?",
        "table1",
        (("ours", "ours w/o MS-LP"), ("ours", "ours w/ MS-LI")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
    ),
    Question(
        "Does the pyramid with its H modules matter?",
        "table1",
        (("ours", "Hourglass"), ("ours", "Hourglass+SC"), ("ours", "Hourglass+SA")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
    ),
    Question(
        "Does sharing more blocks help?",
        "table1",
        tuple(("4 shared blocks", each) for each in ("1 shared block", "2 shared blocks", "3 shared blocks")),
        columns=("FGSM", "BIM"),
        beside=FARTHER,
    ),
    Question(
        "Under the paper's protocol, against adversarial training and ComDefend",
        "table2",
        tuple(("ours", each) for each in ("Adv. FGSM", "Adv. DDN", "Adv. PGD", "ComDefend")),
        beside=(*FARTHER, "Clean"),
    ),
    Question(
        "What does the decoder add to noise as weak as the paper's?",
        "table2",
        (("ours + GN", "noise alone"),),
        beside=FARTHER,
    ),
    Question(
        "What does noise as weak as the paper's add to the decoder?", "table2", (("ours + GN", "ours"),), beside=FARTHER
    ),
    Question(
        "White-box, is Defend++ harder to fool than an undefended network? (MNIST)",
        "table2",
        (("ours", OTHER), ("ours, alternating", OTHER), ("ours + GN", OTHER), ("ours + GN", "noise alone")),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
    Question(
        "White-box, is Defend++ harder to fool than an undefended network? (CIFAR-10)",
        "table3",
        (("ours", OTHER), ("ours + GN", OTHER), ("ours + GN", "noise alone")),
        "white-box",
        ("FGSM", "BIM", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
    *(
        Question(
            f"White-box, is Defend++ harder to fool than an undefended network? ({data}, other networks)",
            table,
            tuple((f"ours ({network})", f"{OTHER} ({network})") for network in ("VGG16", "ResNet-50")),
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
    Question(
        "White-box, against adversarial training",
        "table2",
        (("ours", "Adv. FGSM"), ("ours", "Adv. DDN"), ("ours", "Adv. PGD")),
        "white-box",
        ("FGSM", "BIM", "PGD", "Cascade"),
        together=True,
        nearest=FARTHER,
    ),
)
