"""Write docs/study.md from the records in `results/study`; nothing there is typed by hand.

python docs/study.py
"""

from pathlib import Path

from defendpp import claims, conclusions, findings, paper, reported, schedule, study, study_report, tables
from defendpp.progress import spoken
from defendpp.questions import FARTHER, OTHER, QUESTIONS
from defendpp.study import Measurement, Place, Training

ROOT = Path(__file__).resolve().parent.parent
PLACE = Place(ROOT / "results" / "study", ROOT / "study")
SCRIPTS = "https://github.com/LiuWenQingS/Defending-Adversarial-Examples-via-DNN-Bottleneck-Reinforcement/tree/7d97dc7"
GPU = 1e13
"""FLOP a second that a training is assumed to reach on a graphics card, in the estimate for "paper" scale."""


def page(place: Place = PLACE) -> str:
    """docs/study.md, as far as the study was done."""
    jobs = study.plan(study.NAMES, "cpu")
    wanted = [job for job in jobs if isinstance(job, Measurement)]
    measured = [job for job in wanted if job.is_done(place)]
    trained = [job for job in jobs if isinstance(job, Training) and job.file(place).exists()]
    done: list[study.Job] = [*measured, *trained]
    spent = sum(schedule.seconds(job, place) or 0.0 for job in done)
    seeds, sources = (", ".join(map(str, each)) for each in (paper.SOURCE_SEEDS, paper.SOURCE_SEEDS.values()))
    epochs = {
        (data, network): paper.recipe("none", data, network, "cpu", 1).epochs
        for data in ("mnist", "cifar10")
        for network in ("resnet18", "resnet50", "vgg16")
    }
    asked = {question: findings.answers(question, "cpu", place) for question in QUESTIONS}
    every, larger = reported.held("cpu", place), reported.larger_budget("cpu", place)
    parts = [
        "# The paper's study, reported beside measured",
        "<!-- Written by docs/study.py from results/study; do not edit. -->",
        "Every table and figure of Liu et al., “Defending Adversarial Examples via DNN Bottleneck Reinforcement” (ACM "
        "MM 2020), measured again as far as it is done. `defendpp reproduce all` does what is missing; `defendpp "
        "reproduce table1 --show` prints what is there.",
        "## What we conclude",
        *conclusions.conclusions(asked, every, "cpu", larger),
        "## In short",
        "Images left right, in %, with 95 % intervals: over training seeds on MNIST, over the images of one network "
        "elsewhere. “Shown images of another network” is the paper's protocol; DDN's stop just across that network's "
        "boundary, so that a high number there is no robustness. What resists an attacker who has the gradients is on "
        "[a page of its own](robustness.md).",
        claims.headlines("cpu", place),
        findings.in_short(asked),
        "## How to read it",
        f"The paper calls its setting white-box. The [scripts]({SCRIPTS}) that its first author published make the "
        "adversarial images once, on the undefended classifier, and show them to every other network, and on MNIST and "
        "CIFAR-10 with ResNets the order of the numbers printed of its own defence, C&W and DDN near clean accuracy "
        "and above FGSM, is natural for that, and not what attacks give that succeed on each network itself; with "
        "VGG16 on MNIST and on ImageNet it is not quite that of either (below). "
        "So each table has three lines a row: *reported*; *paper's protocol*, with images made as in those scripts; "
        "and *white-box*, each network attacked through its own gradients. It is a reading of the evidence, not an "
        "accusation. The scripts also start from the trained source and keep the epoch that resists most on test "
        "images; the rows called fine-tuned do the former, and no row the latter.",
        "- **Words** of the paper: MS-LP, its multi-scale low-pass objective (MS-LI: targets made by linear "
        "interpolation); H modules, those of its Laplacian-pyramid decoder (Hourglass: a plain decoder without; SC: "
        "with skip connections that concatenate; SA: that add); GN, Gaussian noise on the training images. Gray-box: "
        "the attacker knows the classifier and not what stands before it.\n"
        f"- **Scale**: “cpu”. ResNets of width 16 instead of 64, {epochs['mnist', 'resnet18']} epochs on MNIST instead "
        f"of 250, {epochs['cifar10', 'resnet18']} on CIFAR-10 (ResNet-50 {epochs['cifar10', 'resnet50']}, VGG16 "
        f"{epochs['cifar10', 'vgg16']}, with less dropout) instead of 300, trained at a schedule for so few. On "
        f"ImageNet a pretrained {_imagenet_network()} stands for the paper's ResNet-18. No number here is one of the "
        "paper's scale.\n"
        "- **Data**: CIFAR-10 was read from a copy whose images had been re-encoded as JPEG, so figures on it are not "
        f"exactly those of the lossless set. ImageNet is {_imagenet()}. MNIST is MNIST.\n"
        "- **Source** of the transferred images: an undefended network, which is the row “No defense”. Each training "
        f"seed of the other rows has a source of its own, of training seeds {sources}: three seeds are the whole "
        "experiment three times. No other row has the seed of a source, so “No defense, another seed” tells what it is "
        "worth not to be the source. Fine-tuned rows, Adv. DDN and ComDefend descend from the source, as in the "
        "released scripts, and Adv. FGSM on a fixed set was trained on its images.\n"
        f"- **Training seeds** are planned to be {seeds} for ResNet-18 on MNIST ({_own_seeds()}); "
        f"{paper.ONE_SEED['mnist']} for VGG16, ResNet-50 and what is shown across networks on MNIST; elsewhere 1. "
        "Attacks: seed 0. Weights depend on processor and number of threads, and those of the first seed are "
        "not kept: what was added later is measured of the other seeds only.\n"
        "- **Intervals** are 95 %: Wilson's over the images for one seed; over several seeds Student's, or Wilson's "
        "where that is wider. Differences are paired, image by image: Newcombe's interval for one seed, over several "
        "seeds Student's, or Newcombe's where that is wider, with the difference of each seed in brackets. None is "
        "corrected for their number: with no real effect one in twenty still excludes 0; and one of a single training "
        "seed leaves out how much trainings differ, so that it excludes 0 for most pairs of networks, two undefended "
        "ones included. p is McNemar's exact test, which may "
        "differ at the limit.\n"
        "- **Verdicts** go by intervals. “Higher” and “lower”: the interval excludes 0, and of one pair p is below "
        f"0.05. “No difference beyond {100 * findings.MARGIN:.0f} points”: not so, and it ends within so many points "
        "of it. “Undecided”: it holds more than that. A smaller effect than those points is not excluded by “no "
        "difference”. “Farther” and “less far” in L2 are said over several training seeds only, where the interval of "
        "the mean of their medians excludes 0.\n"
        "- **White-box** is FGSM, BIM, PGD (cross-entropy, one start), C&W and DDN, as in the paper: upper bounds of "
        "robust accuracy; tables 2, 3, 5 and 6 have the cascade beside them, which ends in random search. C&W has the "
        "paper's 5 times 20 steps and does not converge in them; DDN takes 100. C&W and DDN may go any distance: where "
        "one of them needs more than the other, or leaves images right, that is its failure and no robustness, as of "
        "DDN on VGG16. "
        "Which cells of FGSM, BIM and PGD show a failed attack is listed below.\n"
        "- **Images**: where a cell has fewer than all test images, they are the first so many of one random order, "
        "the same for all rows; "
        f"{_subset(place)}compare cells of one number of images and of the same training seeds only.\n"
        "- **Selection**: the epoch with the best accuracy on clean validation images; of the rows called "
        "fine-tuned the last, because by that rule it would be the first, which is the source still. Test images were "
        "never used.\n"
        "- **Budgets**: the paper gives them for FGSM (0.2 on MNIST, 0.05 on CIFAR-10, 0.01 on ImageNet); BIM and PGD "
        "get the same, in 100 steps, each of a tenth of the budget. 0.2 is 51/255, so that rounding to 8 bits leaves "
        "MNIST's FGSM images as they are and moves a pixel of BIM's by half a level at most: those columns are shown "
        "but not judged.",
        f"{len(measured):,} of {len(wanted):,} measurements and {len(trained)} networks are there; they took at least "
        f"{spoken(spent)} of one to two processor cores, not counting the images that were made to be shown.",
        "## The answers, one by one",
    ]
    for question, lines in asked.items():
        protocol = "The paper's protocol." if question.protocol == "transfer" else "White-box."
        if set(FARTHER) & set(question.beside):
            protocol += " C&W and DDN, which stop just across the boundary of the source, are no part of the verdict."
        if question.together:
            protocol += " The verdict is on all attacks together: an image counts where it is right under each."
        claim = f"The paper: {question.claim}" if question.claim else ""
        above = " ".join(each for each in (claim, question.reading, protocol) if each)
        parts.append(f"### {question.text}\n\n{above}")
        parts.append("\n".join(f"- {line}" for line in lines))
    for name in ("table2", "table3", "table5", "table6"):
        failed = findings.failures(name, "cpu", place)
        if failed:
            parts.append(f"### Which white-box attacks failed? ({name.replace('table', 'table ')})")
            parts.append(
                "At the same budget another attack, or images made on another network, left fewer images right, by at "
                "least a point and beyond chance; so these cells are no robust accuracy. FGSM is one step, and "
                "compared with one step only. Likewise what may go any distance and leaves more than 1 % right. Over "
                "the training seeds that were measured of both.\n\n" + "\n".join(f"- {line}" for line in failed)
            )
    numbers = reported.reproduced(every)
    if numbers:
        parts += ["### Are the paper's numbers reproduced?", numbers, *([larger] if larger else [])]
    ways = reported.tried("cpu", place)
    if ways:
        parts += [
            "### What was tried where it came out differently",
            "Under the paper's protocol, where the published number is not in the interval of “ours”. Larger "
            "budgets and rounding to 8 bits are in the last table. "
            "Not tried: the paper's scale; alternating learning on natural images, where section 3.4 recommends it; to "
            "keep the epoch that resists most on test images, as the scripts do, which chooses by the test set.",
            "\n".join(f"- {line}" for line in ways),
        ]
    parts.append("### Does the order of the attacks in the paper fit transfer or white-box?")
    for name, rows in {
        "table2": ("ours", "Adv. FGSM", "Adv. DDN", "Adv. PGD", "ComDefend"),
        "table3": ("ours",),
        "table4": ("ours",),
        "table5": ("ours (VGG16)", "ours (ResNet-50)"),
        "table6": ("ours (VGG16)", "ours (ResNet-50)"),
    }.items():
        for row in rows:
            found = claims.orders(name, "cpu", place, row)
            if len(found) > 1:
                parts += [f"{paper.TABLES[name].title}, “{row}”:", "\n".join(f"- {line}" for line in found)]
    for name in ("table7", "table8"):
        found = claims.universality(name, "cpu", place)
        if found:
            parts += [
                f"### Universality (section 4.5, {name.replace('table', 'table ')})",
                "The paper: Defend++ “performs even better on the cross-model”, and ResNet-50 “slightly better” than "
                "ResNet-18. The undefended network of another seed tells whether that is Defend++'s doing. One pair of "
                "networks, FGSM.",
                "\n".join(f"- {line}" for line in found),
            ]
    seen = claims.visibility("cpu", place)
    if seen:
        parts += [
            "### Which attack is the more visible (sections 4.2 and 4.4)",
            "\n".join(f"- {each}" for each in seen),
        ]
    claimed = claims.budget_and_removal("cpu", place)
    if claimed:
        parts += [
            "### Budget and removal (section 4.5)",
            "Of one pair of networks, training seed 1.",
            "\n".join(f"- {line}" for line in claimed),
        ]
    for name in sorted(paper.TABLES, key=lambda each: (each == "variations", each)):
        heading = "What the paper leaves open" if name == "variations" else name.replace("table", "Table ")
        printed = tables.printed(name, "cpu", place)
        parts += [f"## {heading}", f"{printed.title}.", tables.markdown(printed).strip()]
    for name, title in paper.FIGURES.items():
        heading = f"## {name.replace('figure', 'Figure ')}"
        picture = place.results / f"{name}.png"
        shown = f"![{title}](../results/study/{name}.png)" if picture.exists() else "Not measured yet."
        parts += [heading, f"{title}.", shown]
    return "\n\n".join([*parts, *_recipes(), *_paper_scale()]) + "\n"


def _subset(place: Place) -> str:
    """How hard the images are that dear attacks are run on, by a cheap one that was run on all."""
    ease = findings.on_part("table2", OTHER, "FGSM", "BIM", "cpu", place)
    if ease is None:
        return ""
    whole, part = ease
    return (
        f"under white-box FGSM “{OTHER}” (one training seed) keeps {100 * whole.value:.1f} % of all {whole.n:,} of "
        f"MNIST and {100 * part.value:.1f} % of these {part.n:,}; "
    )


def _own_seeds() -> str:
    """Rows of tables 1 and 2, and tables on the same networks, that have training seeds of their own."""
    rows = [(row.name, row.seeds) for name in ("table1", "table2") for row in paper.TABLES[name].rows if row.seeds]
    shown = [*rows, ("What the paper leaves open", paper.TABLES["variations"].seeds)]
    by_seeds = {
        seeds: [name for name, its in shown if its == seeds] for seeds in dict.fromkeys(its for _, its in shown)
    }
    return "; ".join(
        f"{', '.join(f'“{name}”' for name in names)}: {' and '.join(map(str, seeds))}"
        for seeds, names in by_seeds.items()
    )


def _imagenet() -> str:
    recipe = paper.recipe("ours", "imagenet", "pretrained", "cpu", 1)
    size = schedule.TRAINING_IMAGES[recipe.data]
    return (
        f"at {recipe.image_size} pixels; rows that are trained at all are fine-tuned on {size} training images, one of "
        f"each of {size} classes, where the paper has about 10,000, and all are tested on "
        f"{schedule.TEST_IMAGES['imagenet']} of the 1,000 images of the NIPS 2017 competition, some of them of classes "
        "that no fine-tuning saw"
    )


def _imagenet_network() -> str:
    return paper.recipe("ours", "imagenet", "pretrained", "cpu", 1).network.removeprefix("timm/")


def _recipes() -> list[str]:
    """How each row was trained: the undefended network in full, all others as what differs from it."""
    undefended = ["| data | network | trained |", "|---|---|---|"]
    others = ["| data | network | rows | beside the undefended network | |", "|---|---|---|---|---|"]
    named: dict[tuple[str, str, str], list[str]] = {}
    for table in paper.TABLES.values():
        for row in (each for each in table.rows if each.role):
            rows = named.setdefault((table.data, row.network, row.role), [])
            rows += [row.name] * (row.name not in rows)
    remarks = dict(paper.REMARKS)
    for (data, network, role), rows in sorted(named.items(), key=lambda each: each[0][:2] != ("mnist", "resnet18")):
        trained = "comdefend" if role == "comdefend-wb" else role
        recipe, plain = (paper.recipe(each, data, network, "cpu", 1) for each in (trained, "none"))
        shown = f"{data} | {paper.NETWORKS[network]}"
        if role == "none":
            undefended.append(f"| {shown} | {study_report.whole(plain)} |")
        else:
            text = study_report.differences(recipe, plain)
            others.append(f"| {shown} | {', '.join(rows)} | {text} | {remarks.pop(role, '')} |")
    loss = paper.recipe("ours", "mnist", "resnet18", "cpu", 1)
    return [
        "## How each row was trained",
        "\n".join(undefended),
        f"Defend++ adds reconstruction, with weight {loss.full_scale_weight:g} on the full scale and "
        f"λ = {loss.scale_weight:g} on the smaller ones.",
        "\n".join(others),
    ]


def _paper_scale() -> list[str]:
    """What the study would cost at the paper's scale."""
    jobs = study.plan(study.NAMES, "paper")
    rows = []
    for name in sorted(paper.TABLES, key=lambda each: (each == "variations", each)):
        mine = study.plan([name], "paper")
        training = sum(schedule.cost(job) for job in mine if isinstance(job, Training))
        attacks = sum(schedule.cost(job) for job in mine if not isinstance(job, Training))
        rows.append(f"| {name} | {len(mine)} | {training / GPU / 3600:.0f} | {attacks / GPU / 3600:.0f} |")
    total = sum(schedule.cost(job) for job in jobs) / GPU / 3600
    return [
        "## At the paper's scale",
        f"`defendpp reproduce all --scale paper` has {len(jobs):,} jobs, one training seed each, at full width and "
        f"with the paper's epochs. Counted in operations and at an assumed {GPU / 1e12:.0f} TFLOP/s, all of it takes "
        f"about {total:,.0f} hours of one card; what tables share is counted "
        "once in that sum and under each table below. It was not run.",
        "\n".join(["| | jobs | training, h | attacks, h |", "|---|---:|---:|---:|", *rows]),
    ]


if __name__ == "__main__":
    for each in study.NAMES:
        write = study_report.write_table if each in paper.TABLES else study_report.write_figure
        write(each, "cpu", PLACE)
    (ROOT / "docs" / "study.md").write_text(page())
