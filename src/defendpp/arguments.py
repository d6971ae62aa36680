"""What words of the command line stand for: attacks, images, devices. Heavy imports wait until they are needed."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from defendpp.data import Images
    from defendpp.runs import Run
    from defendpp.threats import Attack

AttackName = Literal[
    "fgsm", "bim", "pgd", "carlini-wagner", "ddn", "cascade", "auto-attack", "square", "minimal-pgd",
    "pixel-flips", "adaptive-bottleneck", "adaptive-reconstruction",
]  # fmt: skip
Norm = Literal["linf", "l2"]
MINIMAL: tuple[AttackName, ...] = ("carlini-wagner", "ddn", "minimal-pgd")
"""Attacks that have no budget: they find the smallest distance."""
USUAL: tuple[AttackName, ...] = ("fgsm", "bim", "pgd", "carlini-wagner", "ddn", "cascade")
"""The paper's, and one to rely on."""
STEPLESS: tuple[AttackName, ...] = ("fgsm", "auto-attack")
RESTARTED: tuple[AttackName, ...] = ("pgd", "cascade", "adaptive-bottleneck", "adaptive-reconstruction")


def attacks(
    names: tuple[AttackName, ...],
    epsilons: tuple[float, ...],
    norm: Norm,
    steps: int | None,
    restarts: int,
    runs: "Sequence[Run]",
) -> list["Attack"]:
    """The attacks of these names at each of the epsilons, without any at the paper's for such images; those without a
    budget once.

    steps, restarts: None and 1 leave each attack its own. runs: what is attacked; adaptive attacks use their decoders.
    Raises `ValueError` for settings that none of the attacks has, or that do not go together.
    """
    from defendpp import threats
    from defendpp.adaptive import against_decoder

    if not names:
        raise ValueError(f"no attack was chosen, expected some of {', '.join(get_args(AttackName))}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if steps is not None and set(names) <= set(STEPLESS):
        raise ValueError(f"{names[0]} has no number of steps, but {steps} was given")
    if restarts != 1 and not set(names) & set(RESTARTED):
        raise ValueError(f"restarts go with {', '.join(RESTARTED)}, but {restarts} was given with {', '.join(names)}")
    if epsilons and set(names) <= set(MINIMAL):
        raise ValueError(f"{names[0]} looks for the smallest distance and has no epsilon, but {epsilons[0]} was given")
    objectives = [run.objective for run in runs if run.objective is not None]
    if not objectives and (adaptives := [name for name in names if name.startswith("adaptive-")]):
        raise ValueError(f"{adaptives[0]} moves what a decoder ties to the image, and no network here has a decoder")
    adaptive = partial(against_decoder, objectives, steps=steps or 60, restarts=restarts, norm=norm)
    make: dict[AttackName, Callable[[float], Attack]] = {
        "fgsm": threats.fgsm,
        "bim": lambda epsilon: threats.bim(epsilon, steps=steps or 100),
        "pgd": lambda epsilon: threats.pgd(epsilon, steps=steps or 40, restarts=restarts, norm=norm),
        "cascade": lambda epsilon: threats.cascade(epsilon, steps=steps or 75, restarts=restarts, norm=norm),
        "auto-attack": lambda epsilon: threats.auto_attack(epsilon, norm=norm),
        "square": lambda epsilon: threats.square(epsilon, queries=steps or 5000),
        "pixel-flips": lambda epsilon: threats.pixel_flips(epsilon, steps=steps or 100),
        "adaptive-bottleneck": partial(adaptive, raised="bottleneck"),
        "adaptive-reconstruction": partial(adaptive, raised="reconstruction"),
    }
    if norm == "l2":
        if not epsilons and not set(names) <= set(MINIMAL):
            raise ValueError("epsilons must be given for L2, since the paper has no L2 budget")
        if only_linf := [name for name in names if name in ("fgsm", "bim", "square", "minimal-pgd")]:
            raise ValueError(f"{only_linf[0]} is for L∞ here: leave it out, or the norm l2")
    elif "pixel-flips" in names:
        raise ValueError("pixel-flips has an L2 budget: leave it out, or choose the norm l2")
    chosen: list[Attack] = []
    for name in names:
        if name == "carlini-wagner":
            chosen.append(threats.carlini_wagner(iterations=steps or 20))
        elif name == "ddn":
            chosen.append(threats.ddn(steps=steps or 100))
        elif name == "minimal-pgd":
            chosen.append(threats.minimal_pgd(steps=steps or 60))
        else:
            chosen += [make[name](epsilon) for epsilon in epsilons or (threats.usual_epsilon(runs[0].image_shape),)]
    return chosen


def test_images(runs: "list[Run]", data: str | None, root: Path | None, count: int | None) -> "Images":
    """Test images that none of the runs was trained on."""
    from defendpp.data import digest, load

    own = [run for run in runs if data in (None, run.recipe.data)]
    recipe, classes = (own or runs)[0].recipe, runs[0].classes
    if count is not None and count < 1:
        raise ValueError(f"images must be at least 1, not {count}")
    for run in own:
        theirs = (run.recipe.data, run.recipe.image_size, run.recipe.split_seed)
        if theirs != (recipe.data, recipe.image_size, recipe.split_seed):
            raise ValueError(
                f"{run.name!r} was trained on {run.recipe.data}, split {run.recipe.split_seed}, and {own[0].name!r} "
                f"on {recipe.data}, split {recipe.split_seed}: test images of one may be training images of the other"
            )
    for run in runs:
        if {data, run.recipe.data} == {"mnist", "mnist-5k"}:
            raise ValueError(
                f"{run.name!r} cannot be tested on {data}: the digits of mnist-5k are training images of mnist"
            )
        if len(run.classes) != len(classes):
            raise ValueError(f"{run.name!r} knows {len(run.classes)} classes, but {runs[0].name!r} {len(classes)}")
    loaded = load(data or recipe.data, root=root, image_size=recipe.image_size, seed=recipe.split_seed)
    for run in own:
        if run.data_digest != digest(loaded.test):
            raise ValueError(
                f"the test images of {run.recipe.data} are not what they were when {run.name!r} was trained: some may "
                "be its training images"
            )
    if len(loaded.classes) != len(classes):
        raise ValueError(f"{data} has {len(loaded.classes)} classes, but {runs[0].name!r} knows {len(classes)}")
    return loaded.test if count is None else loaded.test.take(count)


def device(name: str) -> str | None:
    """A device that works, for torch; auto is the graphics card where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else None
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as problem:  # AssertionError: a torch that was built without it
        raise ValueError(f"device {name!r} cannot be used here: {str(problem).splitlines()[0]}") from problem
    return name


@contextmanager
def processes(device: str, devices: int, nodes: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """This process's device, and which of how many processes it is; on leaving, all have done their part."""
    from lightning import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    # they meet once, in the end, and one may have hours of work when another is done
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=30))
    fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, strategy=strategy)
    fabric.launch()
    yield str(fabric.device), (fabric.global_rank, fabric.world_size)
    fabric.barrier()


def no_file(folder: Path) -> None:
    """Refuse, with a `ValueError`, a file where a folder is to be made."""
    if any(place.is_file() for place in (folder, *folder.parents)):
        raise ValueError(f"{folder} is, or lies below, a file: name a folder")


def writable(*folders: Path) -> None:
    """Make the folders, or refuse those that cannot be written to: a `ValueError`."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as problem:
            raise ValueError(f"{folder} cannot be written to: {problem.strerror}") from problem
