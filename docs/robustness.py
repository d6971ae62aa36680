"""Write docs/robustness.md from the records in `results`; nothing there is typed by hand.

python docs/robustness.py
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from statistics import mean

from defendpp import findings, paper, robustness, schedule, study, study_report, tables
from defendpp.findings import Question
from defendpp.study import Measurement, Place, Subject, Training

ROOT = Path(__file__).resolve().parent.parent
PLACE = Place(ROOT / "results" / "study", ROOT / "study")
CHOICE = ROOT / "results" / "choice"
LONGER = "twice as long"
"""What the names of candidates end with that were trained for longer."""


def page(place: Place = PLACE, choice: Path = CHOICE) -> str:
    """docs/robustness.md, as far as it was measured."""
    jobs = study.plan(robustness.TABLES, "cpu")
    wanted = [job for job in jobs if isinstance(job, Measurement)]
    measured = [job for job in wanted if job.is_done(place)]
    parts = [
        "# Robust when the attacker knows everything",
        "<!-- Written by docs/robustness.py from results; do not edit. -->",
        "Defend++ as published falls to an attacker who has its gradients ([the study](study.md)). Here is what "
        "resists one, trained on clean images only and with the classifier left as it is, and what each part of it is "
        "worth. "
        f"`defendpp reproduce {' '.join(robustness.TABLES)}` trains and attacks what is "
        "missing; `--show` prints what is there.",
        "## How to read it",
        "- **The attacker knows everything**: weights, gradients, decoder, the defence itself. The cascade goes from a "
        "short Auto-PGD over a long one and targeted ones to random search (L∞ only), until an image falls. Before a "
        "threshold its L2 columns are pixel flips, one pixel after the other moved just across, since an L2 budget "
        "spread over all pixels moves none across. The figures of record add AutoAttack standard, Square with 5,000 "
        "queries and images that PGD made on an undefended twin, and a table of their own, where there is a decoder, "
        "PGD that also moves the bottleneck or the rebuilt image; “worst of all” counts an image only where it is "
        "right under each.\n"
        "- **Rows**: “noise” is white Gaussian noise on the training images, of standard deviation "
        + " and ".join(f"{robustness.NOISE[data]:g} ({shown})" for data, shown in robustness.DATA.items())
        + ", not clipped; “consistency” has the network agree with itself on two noisy copies of an image (Jeong and "
        "Shin 2020); “decoder” is Defend++'s, fed with the noisy image, to rebuild the clean one, “full scale only” "
        "without the coarser targets, “without H modules” with an hourglass for the Laplacian pyramid; “0/1 images” "
        "has a threshold at one half before the network. Rows with noise have a training of their own (last table): "
        "against Defend++ and adversarial training it is compared as a whole, and not noise alone. The margin, which "
        "some attacks descend, is the logit of the right class less the largest of the others.\n"
        "- **Budgets** are in pixel units of [0, 1].\n"
        "- **Selection**: the recipe for digits was chosen on validation images under PGD; the records of that were "
        "not kept, and those below were made afterwards. An earlier one, of larger batches, had by then been measured "
        "on 1,000 test images. Training for twice as long was tried on validation images first; its network of the "
        "first seed is a second training, because the weights of the first were lost, and does as well on test images. "
        "That for CIFAR-10 was set after few trials. "
        "Uniform, two-level, sign and block noise, other digits as noise, noise on hidden maps, L1 penalties on the "
        "gradient and large margins were tried in passing on digits, without records, and left fewer images right at "
        "L∞ 0.2. "
        "Rows with noise keep their last epoch; the others, as in the study, the best on clean validation images.\n"
        "- **Adversarial training** is at the paper's budgets, "
        + " and ".join(f"{paper.EPSILON[data]:g} ({shown})" for data, shown in robustness.DATA.items())
        + " for Adv. FGSM and Adv. PGD (digits only), which may be larger than those it is measured at; Adv. DDN has "
        "no L∞ budget, only a largest L2 norm. Adv. FGSM overfits to its single step, so that it falls to many: to be "
        "ahead of it says little.\n"
        "- **Cost**: consistency sees two noisy copies of each image, so it takes twice the operations of noise alone. "
        "On digits noise that trains as long is measured beside it; on CIFAR-10 there is no such row, and what "
        "consistency adds there may in part be what longer training would.\n"
        "- **Training seeds** are planned to be 1, 2, 3 in the first table of MNIST on clean images and at "
        f"{', '.join(robustness.OVER_SEEDS)}, at its other budgets {paper.ONE_SEED['mnist']}; 1, 2, 3 in "
        f"“{robustness.TABLES['parts-mnist'].title}”; everywhere else {robustness.RECORD_SEED}. Attacks: seed 0.\n"
        "- **Images**: a cell with fewer than all test images has the same random subset as all others of so many, "
        f"which may be easier or harder than the rest; {_subset(place)}compare cells of one number of images only.\n"
        "- **Intervals** are 95 %: Wilson's over the images for one seed; over several seeds Student's, or Wilson's "
        "where that is wider. Differences are paired, image by image, as on the study's page, and so are verdicts; "
        "none is corrected for their number. “No difference beyond 5 points” does not exclude a smaller one, of the "
        "size of what consistency adds. p is McNemar's exact test, which may differ at the limit.\n"
        "- **Certified** accuracy is of another classifier: the same network, smoothed by noise (Cohen et al. 2019), "
        f"at {_listed(robustness.COPIES)} noisy copies an image, each image with failure probability 0.001. But for "
        "that, no attack whatever lowers it; it stands on the line “white-box” because the attacker may know all.\n"
        "- CIFAR-10 was read from a copy whose images had been re-encoded as JPEG, so figures on it are not exactly "
        "those of the lossless set.",
        f"{len(measured):,} of {len(wanted):,} measurements are there.",
        "## What it says",
    ]
    asked = {each: findings.answers(each, "cpu", place) for data in robustness.DATA for each in questions(data)}
    parts.append(findings.in_short(asked))
    for question, lines in asked.items():
        parts += [f"### {question.text}", "\n".join(f"- {line}" for line in lines)]
    for name in robustness.TABLES:
        printed = tables.printed(name, "cpu", place)
        parts += [f"## {printed.title}", tables.markdown(printed).strip()]
    for data in robustness.DATA:
        parts += _chosen(data, choice / f"{data}.json")
    return "\n\n".join([*parts, *_trainings(place)]) + "\n"


def _subset(place: Place) -> str:
    """How hard the images are that dear attacks are run on, by the cascade on all of them."""
    main = robustness.main("mnist")
    compared = (f"Cascade, {main}", "the same on 1,000 images")
    ease = findings.on_part("record-mnist", "noise + consistency", *compared, "cpu", place)
    if ease is None:
        return ""
    whole, part = ease
    level = "high" if part.value > whole.value else "low"
    return (
        f"on MNIST the {part.n:,} are {'easier' if level == 'high' else 'harder'}, and absolute figures on them too "
        f"{level}: under the cascade at {main} “noise + consistency” keeps "
        f"{100 * part.value:.1f} % of them and {100 * whole.value:.1f} % of all {whole.n:,}; "
    )


def _listed(by_data: dict[str, int]) -> str:
    return " and ".join(f"{value:,} ({robustness.DATA[data]})" for data, value in by_data.items())


def questions(data: str) -> list[Question]:
    """What the tables of `data` are to answer."""
    table = robustness.TABLES[f"robust-{data}"]
    budgets = tuple(column.name for column in table.columns if column.attack != "Clean")
    about = robustness.DATA[data]
    names = {row.name for row in table.rows}

    def ask(text: str, *pairs: tuple[str, str]) -> Question:
        """The verdict is that of the main budget, which every training seed is measured at."""
        everywhere = {row for pair in pairs for row in pair} <= names
        others = tuple(each for each in budgets if each != robustness.main(data)) if everywhere else ()
        name = f"{'robust' if everywhere else 'parts'}-{data}"
        columns, beside = (robustness.main(data),), (*others, "Clean")
        return Question(f"{text} ({about})", name, pairs, "white-box", columns, beside=beside)

    main = f"Cascade, {robustness.main(data)}"
    widths = tuple(each.name for each in robustness.TABLES[f"width-{data}"].columns if each.attack != "Clean")
    deciding = widths[:1] if data == "mnist" else widths  # of digits all images, of which the others are a part
    asked = [
        Question(
            f"What does consistency add to noise? ({about}, figures of record)",
            f"record-{data}",
            (("noise + consistency", "noise"), ("noise + consistency, twice as long", "noise")),
            "white-box",
            (main,),
            beside=("Clean",),
        ),
        ask("What does consistency add to noise?", ("noise + consistency", "noise")),
        ask("And to noise that trained as long?", ("noise + consistency", "noise, twice as long")),
        ask(
            "And where both train twice as long as that?",
            ("noise + consistency, twice as long", "noise, four times as long"),
        ),
        ask(
            "And against noise alone, at a quarter of the cost?",
            ("noise + consistency, twice as long", "noise"),
        ),
        ask(
            "What does training for longer add?",
            ("noise, twice as long", "noise"),
            ("noise, four times as long", "noise"),
            ("noise + consistency, twice as long", "noise + consistency"),
        ),
        ask("What does the decoder add to noise that resists?", ("noise + decoder", "noise")),
        ask("What do multi-scale targets add to the decoder?", ("noise + decoder", "noise + decoder, full scale only")),
        ask("What do the H modules add?", ("noise + decoder", "noise + decoder without H modules")),
        ask("What does the decoder add to consistency?", ("noise + consistency + decoder", "noise + consistency")),
        ask("What does noise add to Defend++?", ("noise + decoder", "Defend++")),
        ask(
            "Against adversarial training",
            *(("noise + consistency", each) for each in ("Adv. FGSM", "Adv. DDN", "Adv. PGD") if each in names),
        ),
        ask("Against a threshold", ("noise + consistency", "0/1 images")),
        ask("What does noise add to a threshold?", ("0/1 images + noise", "0/1 images")),
        Question(
            f"Against a threshold, in L2 ({about})",
            f"robust-{data}",
            (("noise + consistency", "0/1 images"),),
            "white-box",
            tuple(each for each in budgets if each.startswith("L2")),
        ),
        Question(
            f"What does noise add to a threshold, in L2? ({about})",
            f"robust-{data}",
            (("0/1 images + noise", "0/1 images"),),
            "white-box",
            tuple(each for each in budgets if each.startswith("L2")),
        ),
        Question(
            f"What does width add? ({about})",
            f"width-{data}",
            tuple((f"width {wide}", f"width {narrow}") for narrow, wide in pairwise(robustness.WIDTHS[data])),
            "white-box",
            deciding,
            beside=(*widths[len(deciding) :], "Clean"),
        ),
    ]
    rows = {name: {row.name for row in table.rows} for name, table in robustness.TABLES.items()}
    return [each for each in asked if {row for pair in each.pairs for row in pair} <= rows.get(each.table, set())]


def _chosen(data: str, record: Path) -> list[str]:
    """The candidates and what they came to on validation images."""
    if not record.exists():
        return []
    made = json.loads(record.read_text()).values()
    threats = list(next(iter(made))["accuracy"])
    lines = [f"| candidate | {' | '.join(threats)} | minutes |", "|---" + "|---:" * (len(threats) + 1) + "|"]
    for each in made:
        values = " | ".join(
            "{:.1f} ({:.0f}–{:.0f})".format(*(100 * x for x in each["accuracy"][name])) for name in threats
        )
        lines.append(f"| {each['name']} | {values} | {each['seconds'] / 60:.0f} |")
    n = next(iter(made))["n"]
    main = robustness.main(data)
    alone = {each["name"]: each["accuracy"][main][0] for each in made if re.fullmatch(r"noise [\d.]+", each["name"])}
    best = ""
    if len(alone) > 1:
        best = (
            f" Of noise alone {max(alone, key=lambda name: alone[name])} is the best at {main}, and so the level to "
            "beat; its neighbours cannot be told from it."
        )
    if any(each["name"].endswith(LONGER) for each in made):
        best += (
            " What trains twice as long also costs twice as much as what is recommended; both are measured above, and "
            "come with the package."
        )
    return [
        f"## Candidates on validation images ({robustness.DATA[data]})",
        f"Accuracy in % on {n} validation images with its 95 % interval, one training seed each: differences of two "
        f"points mean nothing here. `benchmarks/choose.py`; PGD of 60 steps on the margin. The choice is for {main}; "
        f"at other budgets another level may be better.{best}",
        "\n".join(lines),
    ]


def _trainings(place: Place) -> list[str]:
    """What training each row takes, beside the undefended network."""
    lines = ["| data | row | beside the undefended network | operations | minutes |", "|---|---|---|---:|---:|"]
    for data in robustness.DATA:
        plain = robustness.recipe("none", data, "resnet18", "cpu", 1)
        asked = [robustness.TABLES.get(f"{each}-{data}") for each in ("robust", "parts")]
        for row in {row.name: row for table in asked if table for row in table.rows}.values():
            jobs = [Training(Subject(row.role, data, "resnet18", seed, "cpu")) for seed in (1, 2, 3)]
            took = [seconds for seconds in (schedule.seconds(job, place) for job in jobs) if seconds]
            minutes = f"{mean(took) / 60:.0f}" if took else "–"
            beside = study_report.differences(jobs[0].subject.recipe, plain)
            whole = sum(schedule.cost(job) for job in [*jobs[0].needs, jobs[0]])
            operations = whole / schedule.cost(Training(Subject("none", data, "resnet18", 1, "cpu")))
            lines.append(f"| {robustness.DATA[data]} | {row.name} | {beside} | {operations:.1f} | {minutes} |")
    return [
        "## What the training of each row takes",
        "Operations are those of all training steps, of a network that it starts from too, as multiples of the "
        "undefended network's, counted and not measured. Minutes are of the row's own training on one core, beside "
        "other work, now more, now less: orders of magnitude; compare operations. "
        "The classifier, and so its use, is the same in all rows, but for the threshold before those of “0/1 images”.",
        "\n".join(lines),
    ]


if __name__ == "__main__":
    for each in robustness.TABLES:
        study_report.write_table(each, "cpu", PLACE)
    (ROOT / "docs" / "robustness.md").write_text(page())
