"""Do the missing jobs of a study in order, or side by side on Ray, and say how long what is left will take."""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from defendpp import networks, published
from defendpp.progress import bar, spoken
from defendpp.purifier import ComDefend
from defendpp.reproduce import perform
from defendpp.study import Job, Making, Measurement, Picture, Place, Training, computed, lost, missing, needing

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "imagenet": (3, 224, 224)}
TEST_IMAGES = {"mnist": 10_000, "cifar10": 10_000, "imagenet": 300}
TRAINING_IMAGES = {"mnist": 55_000, "cifar10": 45_000, "imagenet": 10_000, "imagenet-1000": 700}
LONG = {"cascade": 400, "auto_attack": 4000, "square": 2500}
"""Gradient passes for an image that resists, where an attack's settings do not tell."""
RATE = 2e10
"""FLOP a second of one core, until finished jobs tell."""

Do = Callable[[Job], None]
Told = Callable[[Job, BaseException | None], None]
"""Called after each job, with what it failed of."""


@dataclass(frozen=True)
class Doing:
    """Do a job: `reproduce.perform` with all it needs to know, in a form that other processes can be handed."""

    place: Place
    data_root: Path | None
    device: str
    """auto: a graphics card where the process that does the job has one."""
    bar: bool
    """Show each job's own progress."""

    def __call__(self, job: Job) -> None:
        """Do `job`."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if not self.bar or isinstance(job, Training):
            perform(job, self.place, data_root=self.data_root, device=device, bar=self.bar)
            return
        with bar() as progress:
            perform(job, self.place, data_root=self.data_root, device=device, progress=progress)


def run(
    jobs: Sequence[Job],
    left: Sequence[Job],
    do: Doing,
    finished: Sequence[Job] = (),
    *,
    workers: int = 1,
    address: str | None = None,
) -> None:
    """Do those of `jobs` that are left, saying which is done and how long the others will take.

    finished: other jobs, by whose time that is estimated, and by those that are done now. In order, or with several
    workers or a cluster's address `on_ray`. A job that fails does not stop those that do not need it; `RuntimeError` in
    the end says how many failed and why the first did.
    """
    waiting = {job.key: job for job in left}
    done: list[Job] = []
    first: list[str] = []

    def told(job: Job, problem: BaseException | None) -> None:
        del waiting[job.key]
        if problem is None:
            done.append(job)
            outcome = "done"
        else:
            expected = isinstance(problem, ValueError | OSError | RuntimeError)
            told = str(problem) if expected else repr(problem)  # others may say nothing by themselves
            outcome = f"failed: {' '.join(told.split())}"
            first.append(f"{job}: {problem}")
        print(f"[{len(left) - len(waiting)}/{len(left)}, {remaining()} left] {job}: {outcome}", flush=True)

    def begun(job: Job) -> None:
        print(f"begun: {job}", flush=True)

    def remaining() -> str:
        return spoken(seconds_left([*waiting.values()], [*finished, *done[-200:]], do.place) / side_by_side(workers))

    print(f"{len(left)} of {len(jobs)} jobs to do: about {remaining()}", flush=True)
    if workers == 1 and address is None:
        failed = in_order(left, do, told, begun)
    else:
        gpus = share_of_a_card(do.device, workers if address is None else None)
        failed = on_ray(left, do, told, begun, address=address, workers=workers, gpus=gpus)
    if failed:
        raise RuntimeError(f"{failed} of {len(left)} jobs failed, the first: {first[0]}")


def listing(
    jobs: Sequence[Job],
    left: Sequence[Job],
    place: Place,
    finished: Sequence[Job] = (),
    workers: int = 1,
    parts: Mapping[str, Sequence[Job]] = {},
) -> None:
    """Print every job, whether it is done, and how long the others will take, by what those that are `finished` took.

    left: in the order that `missing` gives. parts: the jobs behind each table or figure, by its name; how much of each
    is done is printed too.
    """
    waiting = {job.key for job in left}
    hanging = needing(left, lost(left, place))
    doubtful = {job.key for job in hanging}
    for job in jobs:
        state = "done" if job.is_done(place) else "not needed"
        if job.key in waiting:
            state = "no weights" if job.key in doubtful else "to do"
        print(f"{state:10}  {job}")
    shared = side_by_side(workers)
    for name, needed in parts.items():
        open_ = missing(needed, place)  # not what only another part waits for
        rest = f", about {spoken(seconds_left(open_, finished, place) / shared)} left" if open_ else ""
        print(f"{name}: {len(needed) - len(open_)} of {len(needed)} jobs done{rest}")
    took = seconds_left(left, finished, place) / shared
    print(f"{len(jobs)} jobs, {len(left)} to do: about {spoken(took)} on {workers} worker{'s' * (workers > 1)}")
    if hanging:
        rest = spoken(seconds_left(hanging, finished, place) / shared)
        print(f"{len(hanging)} of these, about {rest}, are of networks whose weights are lost (no weights, above)")
    if left and not finished:
        print(f"Nothing like it was done yet: counted at {RATE:.0e} operations a second, one processor core's")


def side_by_side(workers: int) -> int:
    """How many of so many workers this machine has cores for."""
    return min(workers, os.cpu_count() or 1)


@cache
def flops(network: str, width: int, stem: str, defence: str, data: str) -> float:
    """Multiplications and additions of one image's forward pass."""
    channels, side, _ = shape = SHAPES[data]
    with torch.device("meta"):
        model = networks.build(
            network,
            classes=1000 if data == "imagenet" else 10,
            channels=channels,
            image_size=side,
            width=width,
            stem="full" if stem == "full" else "halve",
        ).eval()
        purifier = ComDefend(channels, width=width / 64) if defence == "comdefend" else torch.nn.Identity()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(purifier(torch.zeros(1, *shape)))
    return float(counter.get_total_flops())


def cost(job: Job) -> float:
    """FLOP of a job, roughly: a backward pass costs twice a forward pass, of which half where only images need it."""
    if isinstance(job, Picture):
        return 1e13
    subject = computed(job)
    recipe = subject.recipe
    once = flops(recipe.network, recipe.width, recipe.stem, recipe.defence, subject.data)
    if isinstance(job, Training):
        passes = {"none": 3.0, "comdefend": 3.0, "binarise": 3.0, "defend": 4.5}.get(recipe.defence) or 3 + 2 * (
            {"fgsm": 2, "pgd": 7, "ddn": 20}[recipe.attack] if recipe.attacked_run is None else 1.5
        )
        passes *= 2 if recipe.consistency or recipe.bottleneck else 1
        return recipe.passes * TRAINING_IMAGES.get(recipe.data, 50_000) * passes * once
    images = job.images or TEST_IMAGES[subject.data]
    return images * once * (2 + (2 * steps(job) if isinstance(job, Making) or job.makes_its_images else 0))


def steps(job: Making | Measurement) -> int:
    """Gradient passes of its attack for one image."""
    if job.attack is None:
        return 0
    settings = job.attack.settings
    if job.attack.name in LONG:
        return LONG[job.attack.name]
    if job.attack.name == "smoothing":  # forward passes only
        return int(settings["samples"]) // 2
    return int(settings.get("iterations", 1) * settings.get("search_steps", 1) * settings.get("steps", 1))


def seconds_left(left: Sequence[Job], done: Sequence[Job], place: Place) -> float:
    """How long the jobs that are left take one after the other, by what those done took: of the same kind and network
    where there are any, else of the same kind. Published networks are taken, in no time."""
    rates: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for job in done:
        took = seconds(job, place)
        if took and cost(job):  # a pretrained network is left as it is: no cost, but some seconds
            for key in _likeness(job):
                rates[key].append(cost(job) / took)
    typical = {key: median(each) for key, each in rates.items()}
    made = [job for job in left if not (isinstance(job, Training) and published.of(job.subject.recipe.hash))]
    return sum(cost(job) / next((typical[key] for key in _likeness(job) if key in typical), RATE) for job in made)


def samples(jobs: Sequence[Job], place: Place, of_each: int = 20) -> list[Job]:
    """Jobs whose results are there, so many of each kind, data, network and defence, by whose time to estimate others'.

    Not all, since each has to be read. A training counts without its weights, which may be elsewhere.
    """
    found: dict[tuple[str, ...], list[Job]] = defaultdict(list)
    for job in jobs:
        alike = found[_likeness(job)[0]]
        if len(alike) < of_each and job.file(place).exists():
            alike.append(job)
    return [job for alike in found.values() for job in alike]


def _likeness(job: Job) -> list[tuple[str, ...]]:
    kind = "training" if isinstance(job, Training) else "attack"
    if isinstance(job, Picture):
        return [(kind,)]
    subject = computed(job)
    kind = "look" if isinstance(job, Measurement) and not job.makes_its_images else kind
    return [
        (kind, subject.data, subject.network, subject.recipe.defence),
        (kind, subject.data, subject.network),
        (kind,),
    ]


def seconds(job: Job, place: Place) -> float | None:
    """How long a finished job took, or None where that is not known."""
    try:
        if isinstance(job, Training):
            return float(json.loads(job.file(place).read_text())["result"]["seconds"])
        if isinstance(job, Measurement):
            about = pq.read_schema(job.file(place)).metadata or {}
            return float(about[b"seconds"])
        if isinstance(job, Making):
            return float(json.loads(job.file(place).read_text())["seconds"])
    except (FileNotFoundError, KeyError):
        pass
    return None


def in_order(jobs: Sequence[Job], do: Do, told: Told, begun: Do = lambda _: None) -> int:
    """Do the jobs one after the other, `begun` before each; those that need one that failed are failed too.

    Returns how many failed.
    """
    failed: dict[str, BaseException] = {}
    for job in jobs:
        problem = _inherited(job, failed)
        if problem is None:
            begun(job)
            try:
                do(job)
            except Exception as error:  # whatever it is, the other jobs do not need this one
                problem = error
        if problem is not None:
            failed[job.key] = problem
        told(job, problem)
    return len(failed)


def share_of_a_card(device: str, workers: int | None) -> float:
    """How much of a graphics card each job gets: so many local workers share out this machine's; None is a cluster."""
    cards = torch.cuda.device_count() if workers else 0
    if workers and cards and (device == "auto" or device.startswith("cuda")):
        return min(1.0, cards / workers)
    return float(device.startswith("cuda"))


def on_ray(
    jobs: Sequence[Job],
    do: Do,
    told: Told,
    begun: Do = lambda _: None,
    *,
    address: str | None = None,
    workers: int = 2,
    gpus: float = 0.0,
) -> int:
    """`in_order`, but side by side on a Ray cluster or on `workers` local processes: always the first jobs whose needs
    are done, as many as there is room for.

    do: picklable; the place it works in must be reachable for all. address: of the cluster ("auto" for the one this
    machine belongs to), where each job takes one core; local processes share out this machine's. gpus: graphics cards
    for each job, or a share of one.
    Raises `ModuleNotFoundError` without Ray.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("side by side needs Ray: pip install 'defendpp[ray]'") from None
    threads = 1 if address else max(1, (os.cpu_count() or 1) // workers)
    local: dict[str, Any] = {} if address else {"num_cpus": threads * workers, "include_dashboard": False}
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_call)
        # not all at once: Ray takes what is ready first, which would be every training before any measurement
        cards = int(ray.cluster_resources().get("GPU", 0))
        if gpus and not cards:
            raise ValueError("device cuda was asked for, but the cluster has no graphics card")
        room = max(1, int(ray.cluster_resources()["CPU"] // threads))
        room = max(1, min(room, round(cards / gpus))) if gpus else room
        waiting = [(job, [each.key for each in job.needs]) for job in jobs]
        unfinished = {job.key for job in jobs}
        failed: dict[str, BaseException] = {}
        running: dict[Any, Job] = {}

        def finish(job: Job, problem: BaseException | None) -> None:
            unfinished.discard(job.key)
            if problem is not None:
                failed[job.key] = problem
            told(job, problem)

        while waiting or running:
            for ready in [each for each in waiting if unfinished.isdisjoint(each[1])]:
                job, _ = ready
                inherited = _inherited(job, failed)
                if inherited is None and len(running) >= room:
                    continue
                waiting.remove(ready)
                if inherited is None:
                    begun(job)
                    running[remote.remote(do, job)] = job
                else:
                    finish(job, inherited)
            if running:
                (ended,), _ = ray.wait([*running], num_returns=1)
                try:
                    ray.get(ended)
                    problem: BaseException | None = None
                except ray.exceptions.RayError as error:
                    problem = getattr(error, "cause", None) or error
                finish(running.pop(ended), problem)
        return len(failed)
    finally:
        ray.shutdown()


def _inherited(job: Job, failed: dict[str, BaseException]) -> BaseException | None:
    """Why a job cannot be done: what the first of its needs failed of."""
    return next((failed[each.key] for each in job.needs if each.key in failed), None)


def _call(do: Do, job: Job) -> None:
    do(job)
