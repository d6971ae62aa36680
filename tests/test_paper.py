"""What paper.py says was published, against the text of the paper's tables (tests/paper_tables.txt)."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defendpp import paper
from defendpp.data import from_tensors
from defendpp.paper import SOURCE_SEEDS, TABLES, attacks, recipe
from defendpp.runs import build_classifier, build_objective, train

SECTIONS = dict(
    re.findall(r"^# (.+?)\n(.*?)(?=\n# |\Z)", (Path(__file__).parent / "paper_tables.txt").read_text(), re.M | re.S)
)
COLUMNS = ["FGSM", "BIM", "C&W", "DDN", "Clean"]


def numbers(line: str) -> list[float]:
    return [float(text) for text in re.findall(r"(?<=[\t>])\d+\.\d+", line)]


def printed(table: str) -> list[tuple[str, list[float]]]:
    lines = [line for line in SECTIONS[table].splitlines() if numbers(line)]
    return [(line.split("\t")[0], numbers(line)) for line in lines]


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table4", "table5", "table6"])
def test_every_number_of_a_table_is_the_printed_one(table: str) -> None:
    said = [row for row in TABLES[table].rows if row.published and row.role and row.name != "Adv. PGD"]
    assert [(row.name, [row.published[name] for name in COLUMNS]) for row in said] == printed(table)


@pytest.mark.parametrize("table", ["table7", "table8"])
def test_every_number_of_a_transfer_matrix_is_the_printed_one(table: str) -> None:
    classifiers = [name for name in SECTIONS[table].splitlines()[0].split("\t")[1:] if name for _ in range(2)]
    sources = SECTIONS[table].splitlines()[1].split("\t")[1:]
    names = [f"{classifier} ← {source}" for classifier, source in zip(classifiers, sources, strict=True)]
    for name, values in printed(table):
        (row,) = (row for row in TABLES[table].rows if row.name == name)
        assert dict(row.published) == dict(zip(names, values, strict=True))


def test_the_numbers_in_the_text_are_the_printed_ones() -> None:
    text = SECTIONS["text of section 4.2"]
    of_pgd = [float(x) for x in re.findall(r"\d+\.\d+", text.split("for No defense")[0].split("BIM:")[1])]
    names = ["No defense", "Adv. FGSM", "Adv. DDN", "ComDefend", "ours"]
    rows = {row.name: row.published for row in TABLES["table2"].rows}
    assert [rows[name]["PGD"] for name in names] == of_pgd
    of_adversarial = [float(x) for x in re.findall(r"\d+\.\d+", text.split("we got accuracy")[1])]
    assert [rows["Adv. PGD"][name] for name in ("FGSM", "BIM", "C&W", "DDN", "PGD", "Clean")] == of_adversarial
    quoted = re.search(r"\(e\.g\. (\d+), (\d+), (\d+) for", SECTIONS["text of section 4.5"])
    assert quoted is not None
    (row,) = (row for row in TABLES["table6"].rows if not row.role)
    assert dict(zip(("FGSM", "BIM", "C&W"), map(float, quoted.groups()), strict=True)) == row.published


ROLES = [
    (table.data, row.role, row.network)
    for table in TABLES.values()
    for row in table.rows
    if row.role not in ("", "comdefend-wb")
]


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_every_row_has_a_recipe_that_is_its_own(scale: paper.Scale) -> None:
    made = {
        (data, role, network): recipe(role, data, network, scale, seed=SOURCE_SEEDS[1] if role == "source" else 1)
        for data, role, network in dict.fromkeys(ROLES)
    }
    for each in made.values():
        each.check()
        assert each.scale == scale
    assert len({each.hash for each in made.values()}) == len(made)


def test_the_source_is_no_row_but_its_own() -> None:
    source = recipe("source", "mnist", "resnet18", "cpu", seed=SOURCE_SEEDS[1])
    assert source != recipe("source", "mnist", "resnet18", "cpu", seed=SOURCE_SEEDS[2])
    assert source != recipe("none", "mnist", "resnet18", "cpu", seed=1)
    assert recipe("ours, fine-tuned", "mnist", "resnet18", "cpu", seed=1).start == source.hash


def test_the_recipes_of_section_4_1() -> None:
    plain = recipe("none", "mnist", "resnet18", "paper", seed=1)
    assert (plain.width, plain.epochs, plain.batch_size, plain.learning_rate) == (64, 250, 256, 0.01)
    assert (plain.schedule, plain.decay_every, plain.momentum, plain.weight_decay) == ("step", 100, 0.9, 0.0005)
    natural = recipe("ours", "cifar10", "resnet18", "paper", seed=1)
    assert (natural.epochs, natural.learning_rate, natural.shared_blocks, natural.scale_weight) == (300, 0.1, 3, 0.01)
    assert recipe("ours", "mnist", "resnet18", "paper", seed=1).shared_blocks is None
    assert recipe("ours", "cifar10", "vgg16", "paper", seed=1).dropout == 0.5
    assert {name: attack.epsilon for name, attack in attacks("mnist").items()} == {
        "FGSM": 0.2, "BIM": 0.2, "PGD": 0.2, "Cascade": 0.2, "C&W": None, "DDN": None,
        "FGSM 0.3": 0.3, "BIM 0.3": 0.3, "FGSM, 8 bits": 0.2, "BIM, 8 bits": 0.2,
    }  # fmt: skip
    assert attacks("cifar10")["FGSM"].epsilon == 0.05
    assert attacks("imagenet")["BIM"].settings["steps"] == 100
    assert attacks("mnist")["C&W"].settings["search_steps"] * attacks("mnist")["C&W"].settings["iterations"] == 100


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="no role 'theirs', only source, none"):
        recipe("theirs", "mnist", "resnet18", "cpu", seed=1)


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "vgg16"])
@pytest.mark.parametrize(("data", "shape"), [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_ours_can_be_built_on_every_network(network: str, data: str, shape: tuple[int, int, int]) -> None:
    ours = recipe("ours", data, network, "cpu", seed=1)
    build_objective(ours, build_classifier(ours, 10, shape), shape)


FULL = [
    ("ours + GN", "mnist", "resnet18"), ("adv-pgd", "mnist", "resnet18"), ("comdefend", "cifar10", "resnet18"),
    ("ours", "cifar10", "resnet50"), ("ours", "mnist", "vgg16"), ("ours, alternating", "mnist", "resnet18"),
]  # fmt: skip


@pytest.mark.parametrize(("role", "data", "network"), FULL)
def test_the_recipes_of_the_papers_scale_take_a_step(role: str, data: str, network: str, tmp_path: Path) -> None:
    """At full width, on random images; only the epochs are fewer."""
    shape = (1, 28, 28) if data == "mnist" else (3, 32, 32)
    images = torch.rand(24, *shape, generator=torch.Generator().manual_seed(0))
    loaded = from_tensors(images, torch.arange(24) % 10, test=(images[:4], torch.arange(4)))
    few = {"epochs": 1, "cycles": 1, "auto_encoder_epochs": 1, "classifier_epochs": 1}
    full = replace(recipe(role, data, network, "paper", seed=1), batch_size=4, training_images=4, **few)  # type: ignore[arg-type]
    if full.start is not None:
        plain = replace(recipe("source", data, network, "paper", seed=0), epochs=1, batch_size=4, training_images=4)
        train(plain, loaded, tmp_path / full.start, progress=False)
    run = train(full, loaded, tmp_path / "run", execution="eager", progress=False)
    assert run.result.epochs == (3 if full.learning == "alternating" else 1)
    assert run.recipe.scale == "paper"
