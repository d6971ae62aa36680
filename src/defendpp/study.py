"""The study as jobs: which networks and measurements the paper's tables and figures need.

A job is done when its file exists, so that work can stop at any moment and go on, here or elsewhere, and what two
tables need is done once. Records and the results of trainings are small and are kept (`Place.results`); weights and
adversarial sets are large and can be made again (`Place.work`). `defendpp.reproduce` does the jobs.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from defendpp import paper, published, robustness, threats
from defendpp.files import short_hash
from defendpp.paper import Column, Row, Scale, Table
from defendpp.purifier import STAND_INS
from defendpp.recipe import Recipe
from defendpp.threats import Attack

NAMES = ("table2", "table1", "table3", "table5", "table7", "variations", *paper.FIGURES, "table6", "table8", "table4")
"""The paper's tables and figures, those that matter most first."""

TABLES = {**paper.TABLES, **robustness.TABLES}
"""Those of the paper, and those beyond it."""
ONE_WAY = ("pixel_flips", "square", "smoothing")
"""Attacks that another gradient of a purifier would make no different."""


@dataclass(frozen=True)
class Place:
    """Where a study lies."""

    results: Path
    """What is kept: records, results of trainings, arrays of figures."""
    work: Path
    """Weights and adversarial sets."""

    def run(self, recipe: Recipe) -> Path:
        """The folder of a trained network."""
        return self.work / "networks" / recipe.hash


@dataclass(frozen=True)
class Subject:
    """A network of the study: what a row of a table is about, with its seed."""

    role: str
    data: str
    network: str
    seed: int
    scale: Scale

    @cached_property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return robustness.recipe(self.role, self.data, self.network, self.scale, self.seed)

    @property
    def source(self) -> "Subject":
        """The undefended network of the same architecture, which the paper's protocol attacks."""
        if self.role == "source":
            return self
        return replace(self, role="source", seed=paper.source_seed(self.seed))

    def __str__(self) -> str:
        return f"{self.role} ({self.data}, {paper.NETWORKS[self.network]}, seed {self.seed})"


@dataclass(frozen=True)
class Training:
    """Train a network."""

    subject: Subject

    @property
    def key(self) -> str:
        """What tells it from every other job."""
        return f"training-{self.subject.recipe.hash}"

    @property
    def needs(self) -> "list[Job]":
        """The network that it starts from, or whose attacked images it trains on."""
        recipe, source = self.subject.recipe, self.subject.source
        return [Training(source)] if source.recipe.hash in (recipe.start, recipe.attacked_run) else []

    def is_done(self, place: Place) -> bool:
        """Whether weights and result are there, and of one training: the results may have come from elsewhere."""
        run = place.run(self.subject.recipe)
        if not (run / "classifier.safetensors").exists():
            return False
        try:
            kept, trained = (json.loads(path.read_text()) for path in (self.file(place), run / "run.json"))
        except FileNotFoundError:
            return False
        return bool({**kept, "id": None} == {**trained, "id": None})

    def file(self, place: Place) -> Path:
        """The result, a copy of the run's `run.json`."""
        return place.results / "networks" / f"{self.subject.recipe.hash}.json"

    def __str__(self) -> str:
        return f"train {self.subject}"


@dataclass(frozen=True)
class Making:
    """Make an adversarial set to be shown to other networks."""

    source: Subject
    attack: Attack
    images: int | None

    @property
    def key(self) -> str:
        """What tells it from every other job."""
        return f"set-{_hash(self.source, self.attack, self.images)}"

    @property
    def needs(self) -> "list[Job]":
        """Its source."""
        return [Training(self.source)]

    def is_done(self, place: Place) -> bool:
        """Whether all pieces of the set are there."""
        return self.file(place).exists()

    def file(self, place: Place) -> Path:
        """Written after the last piece; names the set's folder."""
        return place.work / "sets" / f"{self.key}.json"

    def __str__(self) -> str:
        return f"make {self.attack} on {self.source}{_counted(self.images)}"


@dataclass(frozen=True)
class Measurement:
    """Measure a network on what an attack makes on a source, or on clean images."""

    target: Subject
    source: Subject
    attack: Attack | None = None
    images: int | None = None
    """Only so many of the test images, a random subset."""
    through: str = ""
    """How gradients pass a purifier: straight-through or identity; "bare": attack and test the classifier behind it on
    reformed images, which is what the paper's ComDefend-wb does."""

    @cached_property
    def key(self) -> str:
        """What tells it from every other job: what determines its records, but no names."""
        return f"{self.target.recipe.hash}-{_hash(self.source, self.attack, self.images, self.through)}"

    @property
    def is_white_box(self) -> bool:
        """Whether the target itself is attacked."""
        return self.target.recipe == self.source.recipe

    @property
    def makes_its_images(self) -> bool:
        """Whether it attacks: not where images are clean, or of a set that others are shown too, as a source's are."""
        return self.attack is not None and self.is_white_box and self.target.role != "source"

    @property
    def needs(self) -> "list[Job]":
        """The target, and the images to show to it, where these are made on another network."""
        trained: list[Job] = [Training(self.target)]
        if self.attack is None or self.makes_its_images:
            return trained
        return [*trained, Training(self.source), Making(self.source, self.attack, self.images)]

    def is_done(self, place: Place) -> bool:
        """Whether its records are there."""
        return self.file(place).exists()

    def file(self, place: Place) -> Path:
        """The records."""
        return place.results / "records" / f"{self.key}.parquet"

    def __str__(self) -> str:
        through = f" ({self.through})" if self.through else ""
        made_on = "" if self.is_white_box or self.attack is None else f" made on {self.source}"
        return f"{self.attack or 'clean'}{through} on {self.target}{made_on}{_counted(self.images)}"


@dataclass(frozen=True)
class Picture:
    """The arrays of a figure that is no function of records."""

    figure: str
    scale: Scale

    @property
    def key(self) -> str:
        """What tells it from every other job: the networks, which have the scale, and the attacks."""
        shown = [each.recipe.hash for each in self.subjects]
        made = [_described(paper.attacks("mnist")[name]) for name in ("FGSM", "BIM", "C&W", "DDN")]
        return f"{self.figure}-{short_hash([shown, made])}"

    @property
    def subjects(self) -> list[Subject]:
        """The source, and Defend++ where the figure is about the auto-encoder, or both data sets where about images."""
        ours = Subject("ours", "mnist", "resnet18", 1, self.scale)
        others = {"figure2": [replace(ours.source, data="cifar10")], "figure5": []}
        return [ours.source, *others.get(self.figure, [ours])]

    @property
    def needs(self) -> "list[Job]":
        """The networks it shows; of figure 2 there is none, only their images."""
        return [Training(each) for each in self.subjects] if self.figure != "figure2" else []

    def is_done(self, place: Place) -> bool:
        """Whether its arrays are there."""
        return self.file(place).exists()

    def file(self, place: Place) -> Path:
        """The arrays."""
        return place.results / "figures" / f"{self.key}.npz"

    def __str__(self) -> str:
        return f"arrays of {self.figure}"


Job = Training | Making | Measurement | Picture


def computed(job: Training | Making | Measurement) -> Subject:
    """The network whose passes are what the job takes."""
    if isinstance(job, Training):
        return job.subject
    return job.source if isinstance(job, Making) else job.target


def _hash(source: Subject, attack: Attack | None, images: int | None, through: str = "") -> str:
    return short_hash([source.recipe.hash, attack and _described(attack), images, through])


def _described(attack: Attack) -> list[object]:
    return [attack.name, attack.norm, attack.epsilon, dict(attack.settings)]


def _counted(images: int | None) -> str:
    return "" if images is None else f", {images} images"


def seeds(row: Row, table: Table, scale: Scale, column: Column | None = None) -> tuple[int, ...]:
    """Training seeds of a row, or of its cell in a column. Of "No defense" those of the sources that belong to them."""
    wanted = _experiments(row, table, scale, column)
    return tuple(paper.SOURCE_SEEDS[seed] for seed in wanted) if row.role == "source" else wanted


def _experiments(row: Row, table: Table, scale: Scale, column: Column | None) -> tuple[int, ...]:
    return (1,) if scale == "paper" else (column and column.seeds) or row.seeds or table.seeds


def count(subject: Subject, attack: str, *, white_box: bool) -> int | None:
    """How many test images: all (None), or fewer where an attack is dear for a processor."""
    if subject.scale == "paper" or attack == "Clean":
        return None
    if subject.data == "imagenet":
        return 100 if white_box and attack != "FGSM" else None
    if subject.role.startswith("comdefend") and white_box:
        return 200
    if attack.startswith("FGSM"):
        return None
    if white_box:
        return 1000 if subject.network != "resnet50" else 500
    return None if subject.data == "mnist" and subject.network == "resnet18" else 2000


BySeed = dict[int, list[Measurement]]
"""By the target's training seed measurements of which the worst counts, image by image."""


def cell(table: Table, row: Row, column: Column, scale: Scale) -> tuple[BySeed, BySeed]:
    """What a cell shows: under the paper's protocol, transfer, and white-box.

    White-box is empty where the column has another source than the network itself. The row "No defense" is the source:
    both are then the same. Both are empty for a row that the paper quotes.
    """
    network = column.network or row.network
    transfer: BySeed = {}
    white_box: BySeed = {}
    if not row.role:
        return transfer, white_box
    attacks = robustness.attacks(table.data)
    for seed in seeds(row, table, scale, column):
        role = "comdefend" if row.role == "comdefend-wb" else row.role
        target = Subject(role, table.data, network, seed, scale)
        source = replace(target.source, network=column.source or network)
        if column.attack == "Clean":
            (transfer if "transfer" in column.protocols else white_box)[seed] = [Measurement(target, target)]
            continue
        attack = attacks[column.attack]
        few, many = (column.images or count(target, column.attack, white_box=is_white) for is_white in (True, False))
        if row.role == "comdefend-wb":
            if "transfer" in column.protocols:
                transfer[seed] = [Measurement(target, target, attack, few, "bare")]
            continue
        if "transfer" in column.protocols:
            transfer[seed] = [Measurement(target, source, attack, many)]
        if source == target and transfer:
            white_box[seed] = transfer[seed]
        elif column.source in (None, network) and "white-box" in column.protocols:
            every = [robustness.fitting(attacks[name], target.recipe) for name in (column.attack, *column.also)]
            white_box[seed] = [
                Measurement(target, target, each, few, way) for each in every for way in _ways(target.recipe, each)
            ]
            if column.twin:
                experiment = paper.ONE_SEED[table.data] if scale == "cpu" else 1
                twin = replace(source, seed=paper.SOURCE_SEEDS[experiment])
                white_box[seed].append(Measurement(target, twin, attacks[column.twin], few))
    return transfer, white_box


def _ways(recipe: Recipe, attack: Attack) -> tuple[str, ...]:
    """How gradients pass what stands in front of the classifier that was trained so, if anything does."""
    if recipe.defence not in ("comdefend", "binarise"):
        return ("",)
    return ("identity",) if attack.name in ONE_WAY else STAND_INS


def figure6(scale: Scale) -> dict[tuple[str, str], list[Measurement]]:
    """The measurements of figure 6 by (protocol, role), in the order of the budgets, clean images first."""
    made: dict[tuple[str, str], list[Measurement]] = {}
    for role in ("source", "none", "ours"):
        target = Subject(role, "mnist", "resnet18", paper.SOURCE_SEEDS[1] if role == "source" else 1, scale)
        for protocol, source in (("transfer", target.source), ("white-box", target)):
            attacked = [Measurement(target, source, threats.fgsm(epsilon)) for epsilon in paper.FIGURE6_EPSILONS]
            made[protocol, role] = [Measurement(target, target), *attacked]
    return made


def measurements(name: str, scale: Scale) -> list[Measurement]:
    """What a table or a figure is drawn from."""
    return [each for _, each in _measurements_in_turn(name, scale)]


def _measurements_in_turn(
    name: str, scale: Scale, rows: Collection[str] = (), training_seeds: Collection[int] = ()
) -> list[tuple[int, Measurement]]:
    """`measurements`, each with its turn: 0 for the first training seed of its cell, 1 for the second.

    A row with seeds of its own, which are some of its table's, takes its turn with the others of that seed.
    """
    if name == "figure6":
        return [(0, each) for series in figure6(scale).values() for each in series]
    if name not in TABLES:
        return []
    table = TABLES[name]
    return [
        (table.seeds.index(seed) if seed in row.seeds and seed in table.seeds else turn, each)
        for row in table.rows
        if _is_chosen(row, rows)
        for column in table.columns
        for protocol in cell(table, row, column, scale)  # which may have nothing, whatever the seeds
        for turn, (seed, alternatives) in enumerate(
            zip(_experiments(row, table, scale, column), protocol.values(), strict=False)
        )
        if not training_seeds or seed in training_seeds
        for each in alternatives
    ]


def _is_chosen(row: Row, rows: Collection[str]) -> bool:
    return not rows or row.name in rows or row.role in rows


def plan(
    names: Iterable[str], scale: Scale, *, rows: Collection[str] = (), training_seeds: Collection[int] = ()
) -> list[Job]:
    """All jobs behind these tables and figures, each once, in an order in which they can be done.

    First training seeds of all cells come before second ones: a study that stops early has every table.

    rows: only these rows of the tables, by their names as printed or by their roles; training_seeds: only these. With
    either, figures are left out, which have neither.
    Raises `ValueError` for a row that none of the tables has, and for a seed that none of these rows has.
    """
    names = tuple(names)
    tables = [TABLES[name] for name in names if name in TABLES]
    there = [row for table in tables for row in table.rows]
    if unknown := [each for each in rows if not any(each in (row.name, row.role) for row in there)]:
        known = "; ".join(dict.fromkeys(row.name for row in there))
        rest = f", whose rows are: {known}" if known else ", which is no table"
        raise ValueError(f"{unknown[0]!r} is no row of {', '.join(names)}{rest}")
    known_seeds = {
        seed
        for table in tables
        for row in table.rows
        if row.role and _is_chosen(row, rows)
        for column in table.columns
        for seed in _experiments(row, table, scale, column)
    }
    if missing_seeds := [each for each in training_seeds if each not in known_seeds]:
        raise ValueError(
            f"nothing of {', '.join(names)} is measured with training seed {missing_seeds[0]}, only with "
            f"{', '.join(map(str, sorted(known_seeds))) or 'none'}; a source is chosen by that of the rows it serves"
        )
    wanted: list[tuple[int, Measurement | Picture]] = []
    for name in names:
        if (rows or training_seeds) and name in paper.FIGURES:
            continue
        measured = _measurements_in_turn(name, scale, rows, training_seeds)
        wanted += measured
        if name in paper.FIGURES and not measured:
            wanted.append((0, Picture(name, scale)))
    jobs: dict[str, Job] = {}
    for _, each in sorted(wanted, key=lambda pair: pair[0]):
        _add(each, jobs)
    return list(jobs.values())


def _add(job: Job, jobs: dict[str, Job]) -> None:
    if job.key not in jobs:
        for needed in job.needs:
            _add(needed, jobs)
        jobs[job.key] = job


def missing(jobs: Sequence[Job], place: Place) -> list[Job]:
    """Those that have to be done: measurements and pictures that are not there, and what these need."""
    left: dict[str, Job] = {}

    def require(job: Job) -> None:
        if job.key not in left and not job.is_done(place):
            for needed in job.needs:
                require(needed)
            left[job.key] = job

    for job in jobs:
        if isinstance(job, Measurement | Picture):
            require(job)
    return [job for job in jobs if job.key in left]


def lost(jobs: Sequence[Job], place: Place) -> list[Training]:
    """Trainings among `jobs` whose result is kept while their weights are neither in `place` nor in the package.

    On another machine they come to other weights, and are then refused, with all that needs them.
    """
    return [
        job
        for job in jobs
        if isinstance(job, Training)
        and job.file(place).exists()
        and not (place.run(job.subject.recipe) / "classifier.safetensors").exists()
        and published.of(job.subject.recipe.hash) is None
    ]


def needing(jobs: Sequence[Job], trainings: Sequence[Training]) -> list[Job]:
    """Those of `jobs` that are one of these trainings or need one, directly or by what they need."""
    hanging = {each.key for each in trainings}
    for job in jobs:  # in an order in which each comes after what it needs
        if any(each.key in hanging for each in job.needs):
            hanging.add(job.key)
    return [job for job in jobs if job.key in hanging]


def threads(result: Path) -> str:
    """With how many threads a training computed, by its `run.json`, for messages: weights depend on it."""
    return str(json.loads(result.read_text())["result"].get("threads") or "unknown")
