"""The command line: parse, build, call. Heavy imports wait until a command runs, so that help comes at once."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from defendpp.recipe import Recipe

if TYPE_CHECKING:
    from defendpp.data import Images
    from defendpp.evaluation import Progress
    from defendpp.threats import Attack

AttackName = Literal["fgsm", "bim", "pgd", "carlini-wagner", "ddn"]
ALL: tuple[AttackName, ...] = ("fgsm", "bim", "pgd", "carlini-wagner", "ddn")


def quickstart(output: Path = Path("quickstart"), images: int = 200) -> None:
    """Train four networks on real digits, attack them all, and show who resists what. Takes minutes on two cores.

    Example: defendpp quickstart

    Args:
        output: Folder for the networks, the records and the HTML page; a second call goes on from what is there.
        images: Test images to attack.
    """
    from defendpp import quickstart as job

    runs = job.train_networks(output)
    with _bar() as progress:
        job.attack_networks(runs, output, images=images, progress=progress)
    _show(output, output / "report.html", command="defendpp quickstart")


def train(
    recipe: OmitArgPrefixes[Recipe],
    output: Path,
    name: str | None = None,
    data_root: Path | None = None,
    accelerator: str = "auto",
) -> None:
    """Train a classifier, plain or hardened. Interrupt it at any time: the same command goes on where it was.

    Example: defendpp train --data mnist --defence defend --noise 0.5 --width 16 --output runs/hardened

    Args:
        recipe: How to train.
        output: Folder for the run; it must not hold another run.
        name: What tables call the network; by default its defence.
        data_root: Folder that holds the data sets, or gets them (default: a cache of the user).
        accelerator: auto, cpu, gpu, ... as Lightning knows them.
    """
    from defendpp import data, evaluation, records, runs

    recipe.check()
    loaded = data.load(recipe.data, root=data_root, image_size=recipe.image_size, seed=recipe.split_seed)
    run = runs.train(recipe, loaded, output, name=name, accelerator=accelerator)
    if run.objective is not None:
        print(run.objective.auto_encoder.decoder)
    result = run.result
    print(
        f"{run.name}: {100 * result.validation_accuracy:.2f} % of {result.validation_images} validation images, "
        f"epoch {result.epoch} of {result.epochs}, {result.seconds:.0f} s"
    )
    if len(loaded.test):
        network = evaluation.network(run.name, run.classifier)
        clean = evaluation.clean_records(network, loaded.test, data=recipe.data)
        print(f"clean test accuracy {records.accuracy(clean['correct'].to_numpy())} of {len(clean)} images")
    print(f"saved in {output}")


def attack(
    run: Positional[Path],
    output: Path,
    attack: AttackName = "pgd",
    epsilon: float | None = None,
    steps: int | None = None,
    restarts: int = 1,
    images: int | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Make an adversarial set: what one attack makes of the test images on one network.

    Example: defendpp attack runs/plain --attack bim --epsilon 0.2 --output sets/bim

    Args:
        run: Folder of a trained network.
        output: Folder for the set; an unfinished one is finished.
        attack: Which attack.
        epsilon: L∞ budget of fgsm, bim and pgd in pixel units of [0, 1] (default: the paper's for such images).
        steps: Steps of bim, pgd and ddn, or iterations of each search step of carlini-wagner.
        restarts: Random starts of pgd.
        images: Attack only so many of the test images.
        data: Other data than the network was trained on.
        data_root: Folder that holds the data sets.
        seed: Of what is random in the attack.
        device: cpu, cuda, ...
    """
    from defendpp import evaluation, records, runs

    trained = runs.load_run(run)
    (chosen,) = _attacks((attack,), () if epsilon is None else (epsilon,), steps, restarts, trained.image_shape)
    split = _test_images(trained.recipe, data, data_root, images)
    network = evaluation.network(trained.name, trained.classifier)
    with _bar() as progress:
        made = evaluation.attacked_records(
            [network], network, chosen, split, output, data=data or trained.recipe.data, seed=seed, device=device,
            progress=progress,
        )[network.id]  # fmt: skip
    print(f"{chosen} on {trained.name}: {records.accuracy(made['correct'].to_numpy())} of {len(made)} images resist")
    print(f"saved in {output}")


def evaluate(
    runs: Positional[list[Path]],
    output: Path,
    attacks: tuple[AttackName, ...] = ALL,
    epsilons: tuple[float, ...] = (),
    steps: int | None = None,
    restarts: int = 1,
    source: Path | None = None,
    images: int | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Attack networks white-box and, with a source, by transfer; record every image. Finished jobs are not repeated.

    Example: defendpp evaluate runs/plain runs/hardened --source runs/other --images 1000 --output evaluations/mine

    Args:
        runs: Folders of trained networks.
        output: Folder for records, adversarial sets and pictures.
        attacks: Which attacks.
        epsilons: L∞ budgets of fgsm, bim and pgd in pixel units of [0, 1] (default: the paper's for such images).
        steps: Steps of bim, pgd and ddn, or iterations of each search step of carlini-wagner.
        restarts: Random starts of pgd.
        source: Folder of the network that transferred images are made on.
        images: Attack only so many of the test images.
        data: Other data than the networks were trained on.
        data_root: Folder that holds the data sets.
        seed: Of what is random in the attacks.
        device: cpu, cuda, ...
    """
    from defendpp import evaluation
    from defendpp.runs import load_run

    trained = [load_run(folder) for folder in runs]
    origin = load_run(source) if source is not None else None
    chosen = _attacks(attacks, epsilons, steps, restarts, trained[0].image_shape)
    split = _test_images(trained[0].recipe, data, data_root, images)
    fixed = [each for each in chosen if each.epsilon is not None]
    with _bar() as progress:
        evaluation.evaluate_runs(
            trained, chosen, split, output, data=data or trained[0].recipe.data, source=origin,
            shown=(fixed or chosen)[-1], seed=seed, device=device, progress=progress,
        )  # fmt: skip
    _show(output, output / "report.html", command=" ".join(["defendpp", *sys.argv[1:]]))


def report(evaluation: Positional[Path], output: Path | None = None, overwrite: bool = False) -> None:
    """Show an evaluation again: the table, and one HTML page that needs nothing but itself.

    Example: defendpp report evaluations/mine --output mine.html

    Args:
        evaluation: Folder that `defendpp evaluate` wrote.
        output: The page (default: report.html in that folder).
        overwrite: Replace a page with other content.
    """
    _show(evaluation, output or evaluation / "report.html", overwrite=overwrite or output is None)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; every foreseeable trouble ends in one sentence and an exit code that is not 0."""
    commands: dict[str, Callable[..., None]] = {
        "quickstart": quickstart,
        "train": train,
        "attack": attack,
        "evaluate": evaluate,
        "report": report,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="defendpp",
            description="Harden an image classifier on clean images, and measure honestly what that bought.",
            args=arguments,
        )
    except KeyboardInterrupt:
        sys.exit("defendpp: interrupted; the same command goes on where it was")
    except (ValueError, OSError, RuntimeError) as problem:
        sys.exit(f"defendpp: {' '.join(str(problem).split())}")


def _attacks(
    names: tuple[AttackName, ...],
    epsilons: tuple[float, ...],
    steps: int | None,
    restarts: int,
    image_shape: tuple[int, int, int],
) -> list["Attack"]:
    from defendpp import threats

    if not names:
        raise ValueError(f"no attack was chosen, expected some of {', '.join(ALL)}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    make: dict[AttackName, Callable[[float], Attack]] = {
        "fgsm": threats.fgsm,
        "bim": lambda epsilon: threats.bim(epsilon, steps=steps or 100),
        "pgd": lambda epsilon: threats.pgd(epsilon, steps=steps or 40, restarts=restarts),
    }
    chosen: list[Attack] = []
    for name in names:
        if name == "carlini-wagner":
            chosen.append(threats.carlini_wagner(iterations=steps or 20))
        elif name == "ddn":
            chosen.append(threats.ddn(steps=steps or 100))
        else:
            chosen += [make[name](epsilon) for epsilon in epsilons or (threats.usual_epsilon(image_shape),)]
    return chosen


def _test_images(recipe: Recipe, data: str | None, root: Path | None, count: int | None) -> "Images":
    from defendpp.data import load

    loaded = load(data or recipe.data, root=root, image_size=recipe.image_size, seed=recipe.split_seed)
    return loaded.test if count is None else loaded.test.take(count)


def _show(folder: Path, page: Path, *, command: str | None = None, overwrite: bool = True) -> None:
    """Print the table of the evaluation in `folder` and write its page."""
    from rich.console import Console

    from defendpp import records, report

    made = records.read(folder / "records")
    about_path = folder / "evaluation.json"
    about = json.loads(about_path.read_text()) if about_path.is_file() else {}
    order = {id_: place for place, id_ in enumerate(about.get("networks", []))}
    made = made.sort_values("network_id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True)
    notes = about.get("notes", {}) | ({"Command": command} if command else {})
    budgets = about.get("budgets", {})
    pictures = {
        name: path
        for name, id_ in made[["network", "network_id"]].drop_duplicates().itertuples(index=False)
        if (path := folder / "pictures" / f"{id_}.npz").is_file()
    }
    text = report.html(
        made,
        pictures,
        title="Who resists what",
        notes=notes,
        budgets=budgets,
        baseline=about.get("baseline"),
        control=about.get("control"),
    )
    report.write_html(text, page, overwrite=overwrite)
    Console().print(report.table(made, budgets))
    print(f"\nThe whole report: {page.resolve()}")


@contextmanager
def _bar() -> "Iterator[Progress]":
    """A bar for each piece of work, with the time left; finished ones stay as they ended."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=None)

        def progress(what: str, done: int, total: int) -> None:
            if bar.tasks[0].description != what:
                bar.reset(task, description=what, total=total, completed=0)
            bar.update(task, completed=done)

        yield progress
