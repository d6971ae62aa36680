"""The command line: parse, build, call. Heavy imports wait until a command runs, so that help comes at once."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from defendpp import arguments
from defendpp.arguments import USUAL, AttackName, Norm
from defendpp.files import short_hash
from defendpp.progress import bar
from defendpp.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import RenderableType

    from defendpp.study import Place

UNFINISHED = {
    "Unfinished": "there is no evaluation.json: if `defendpp evaluate` was interrupted, networks or attacks are "
    "missing, and the same command goes on"
}


def quickstart(output: Path = Path("quickstart"), images: int = 200) -> None:
    """Train five networks on real digits, attack them all, and show who resists what. Takes minutes on two cores.

    Example: defendpp quickstart

    Args:
        output: Folder for the networks, the records and the HTML page; a second call goes on from what is there.
        images: Test images to attack.
    """
    from defendpp import quickstart as job

    runs = job.train_networks(output)
    with bar() as progress:
        job.attack_networks(runs, output, images=images, device=arguments.device("auto"), progress=progress)
    _show(output, output / "report.html", command="defendpp quickstart")


def train(
    recipe: OmitArgPrefixes[Recipe],
    output: Path,
    name: str | None = None,
    data_root: Path | None = None,
    execution: Literal["auto", "eager", "channels-last", "bfloat16", "compiled"] = "auto",
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> None:
    """Train a classifier, plain or hardened. Interrupt it at any time: the same command goes on where it was.

    Example: defendpp train --data mnist --defence defend --noise 0.5 --width 16 --output runs/hardened

    Args:
        recipe: How to train.
        output: Folder for the run; it must not hold another run.
        name: What tables call the network; by default its defence.
        data_root: Folder that holds the data sets, or gets them (default: a cache of the user).
        execution: How steps are computed, each way adding to the one before; auto measures which is the fastest here.
        accelerator: auto, cpu, gpu, ... as Lightning knows them.
        devices: Devices on each node; every batch is shared out among all.
        nodes: Machines; start the same command on each, as Lightning's cluster environments describe.
    """
    from defendpp import adversarial_sets, data, evaluation, intervals, runs
    from defendpp.training import is_main_process

    recipe.check()
    loaded = data.load(recipe.data, root=data_root, image_size=recipe.image_size, seed=recipe.split_seed)
    used = min(recipe.training_images or len(loaded.train), len(loaded.train))
    used *= 1 if recipe.attacked_run is None else 2  # each image once more, attacked
    if recipe.epochs and (left_out := used % min(recipe.batch_size, max(1, used))) > used // 10:
        print(f"each epoch leaves out {left_out} of {used} images, which do not fill a batch of {recipe.batch_size}")
    run = runs.train(
        recipe, loaded, output, name=name, execution=execution, accelerator=accelerator, devices=devices, nodes=nodes
    )
    if not is_main_process():
        return
    if run.objective is not None:
        print(run.objective.auto_encoder.decoder)
    result = run.result
    print(
        f"{run.name}: {100 * result.validation_accuracy:.2f} % of {result.validation_images} validation images, "
        f"epoch {result.epoch} of {result.epochs}, {result.seconds:.0f} s"
    )
    if len(loaded.test):
        network = adversarial_sets.network(run.name, run.classifier)
        place = str(runs.place_of(accelerator))
        clean = evaluation.clean_records(network, loaded.test, data=recipe.data, device=place)
        right = intervals.accuracy(clean["correct"].to_numpy())
        guess = intervals.chance(clean["label"].to_numpy(), len(run.classes))
        hint = f", which is not shown to be better than a guess, {100 * guess:.1f} %" * (right.low <= guess)
        print(f"clean test accuracy {right} of {len(clean)} images{hint}")
    print(f"saved in {output}")


def attack(
    run: Positional[Path],
    output: Path,
    attack: AttackName = "pgd",
    epsilon: float | None = None,
    norm: Norm = "linf",
    steps: int | None = None,
    restarts: int = 1,
    images: int | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Make an adversarial set: what one attack makes of the test images on one network.

    Example: defendpp attack runs/plain --attack bim --epsilon 0.2 --output sets

    Args:
        run: Folder of a trained network, or the name of one that comes with the package, such as mnist-robust.
        output: Folder for sets, each in a folder of its own; `defendpp evaluate --sets` takes it.
        attack: Which attack: one of the paper's; cascade, from cheap to expensive until an image falls, for a robust
            accuracy to rely on; auto-attack, the figure that others report; square, without gradients; minimal-pgd, the
            smallest L∞ distance; pixel-flips, for a network behind a threshold; adaptive-..., PGD that also moves a
            part of Defend++'s auto-encoder.
        epsilon: Budget of an attack that has one, in pixel units of [0, 1] (default: the paper's L∞ budget).
        norm: Of the budget; l2 goes with pgd, cascade, auto-attack, adaptive-... and pixel-flips, which has no other.
        steps: Steps of the attack, or of each of its stages or searches.
        restarts: Random starts of pgd, cascade and adaptive-....
        images: Attack only so many of the test images.
        data: Other data than the network was trained on.
        data_root: Folder that holds the data sets.
        seed: Of what is random in the attack.
        device: auto, cpu, cuda, ...
    """
    from defendpp import adversarial_sets, evaluation, intervals, records, runs

    arguments.no_file(output)
    trained = runs.load_run(run)
    (chosen,) = arguments.attacks((attack,), () if epsilon is None else (epsilon,), norm, steps, restarts, [trained])
    split = arguments.test_images([trained], data, data_root, images)
    network = adversarial_sets.network(trained.name, trained.classifier)
    about = data or trained.recipe.data
    with bar() as progress:
        made = evaluation.attacked_records(
            [network],
            network,
            chosen,
            split,
            output,
            data=about,
            seed=seed,
            device=arguments.device(device),
            progress=progress,
        )[network.id]
    if not (made["clean_prediction"] == made["label"]).any():
        print(f"{trained.name}: none of the {len(made)} images is right even without an attack")
    elif chosen.epsilon is None:
        print(f"{chosen} on {trained.name}: median distance {records.median_distance(made)}, {len(made)} images")
    else:
        print(
            f"{chosen} on {trained.name}: {intervals.accuracy(made['correct'].to_numpy())} of {len(made)} images resist"
        )
    print(f"saved in {adversarial_sets.set_folder(network, chosen, split, output, data=about, seed=seed)}")


def evaluate(
    runs: Positional[list[Path]],
    output: Path,
    attacks: tuple[AttackName, ...] = USUAL,
    epsilons: tuple[float, ...] = (),
    norm: Norm = "linf",
    steps: int | None = None,
    restarts: int = 1,
    source: Path | None = None,
    sets: Path | None = None,
    images: int | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> None:
    """Attack networks white-box and, with a source, by transfer; record every image. Finished jobs are not repeated.

    Example: defendpp evaluate runs/plain runs/hardened --source runs/other --images 1000 --output evaluations/mine

    Args:
        runs: Folders of trained networks, or names of those that come with the package, such as mnist-robust.
        output: Folder for records, adversarial sets and pictures.
        attacks: Which attacks, by default the paper's and cascade: from cheap to expensive until an image falls, for a
            robust accuracy to rely on. Beside them auto-attack, the figure that others report; square, without
            gradients; minimal-pgd, the smallest L∞ distance: a curve in one run; pixel-flips, for a network behind a
            threshold; and adaptive-..., PGD that also moves a part of Defend++'s auto-encoder.
        epsilons: Budgets of those that have one, in pixel units of [0, 1]; the first is that of the table, all make the
            curves (default: the paper's L∞ budget).
        norm: Of the budgets; l2 goes with pgd, cascade, auto-attack, adaptive-... and pixel-flips, which has no other.
        steps: Steps of each attack, or of each of its stages or searches.
        restarts: Random starts of pgd, cascade and adaptive-....
        source: Folder of the network that transferred images are made on.
        sets: Folder of adversarial sets to use and to add to (default: sets in the output).
        images: Attack only so many of the test images.
        data: Other data than the networks were trained on.
        data_root: Folder that holds the data sets.
        seed: Of what is random in the attacks.
        device: auto, cpu, cuda, ...
        devices: Devices on each node; the images are shared out among all, and the records do not depend on it.
        nodes: Machines with one file system; start the same command on each, as Lightning's cluster environments say.
    """
    from defendpp import adversarial_sets, evaluation, run_evaluation
    from defendpp.runs import load_run

    arguments.no_file(output)
    if not runs:
        raise ValueError("name the folder of at least one trained network")
    if twice := [folder for folder in runs if runs.count(folder) > 1]:
        raise ValueError(f"{twice[0]} is named {runs.count(twice[0])} times, expected once")
    if devices < 1 or nodes < 1:
        raise ValueError(f"devices and nodes must be at least 1, not {devices} and {nodes}")
    trained = [load_run(folder) for folder in runs]
    names = [run.name for run in trained]
    trained = [
        replace(run, name=f"{run.name} ({folder.name})") if names.count(run.name) > 1 else run
        for run, folder in zip(trained, runs, strict=True)
    ]
    origin = load_run(source) if source is not None else None
    if origin is not None:
        known = {run.id: run for run in trained}
        origin = known.get(origin.id) or (
            replace(origin, name=f"{origin.name} ({source.name})") if source and origin.name in names else origin
        )
    everyone = [*trained, *([origin] if origin else [])]
    chosen = arguments.attacks(attacks, epsilons, norm, steps, restarts, everyone)
    split = arguments.test_images(everyone, data, data_root, images)
    main = [each for each in chosen if each.epsilon is not None and each.epsilon == (epsilons or (each.epsilon,))[0]]
    about = data or trained[0].recipe.data
    if devices * nodes > 1:
        with arguments.processes(device, devices, nodes) as (place, share), bar() as progress:
            networks = [adversarial_sets.network(run.name, run.classifier) for run in trained]
            made_on = adversarial_sets.network(origin.name, origin.classifier) if origin else None
            evaluation.make_sets(
                networks, chosen, split, output, share, data=about, source=made_on, sets=sets,
                scale=trained[0].recipe.scale, seed=seed, device=place, progress=progress if share[0] == 0 else None,
            )  # fmt: skip
        if share[0] > 0:
            return
    earlier = _about(output).get("records", [])
    with bar() as progress:
        run_evaluation.evaluate_runs(
            trained, chosen, split, output, data=about, source=origin, sets=sets,
            shown=(main or chosen)[-1], seed=seed, device=arguments.device(device), progress=progress,
        )  # fmt: skip
    page = output / "report.html"
    if page.exists() and not set(earlier) <= set(_about(output)["records"]):
        kept = page.with_name(f"report-{short_hash(earlier)}.html")
        shutil.copyfile(page, kept)
        print(f"The page of an earlier evaluation is {kept} now; what follows is of this one alone.")
    _show(output, page, command=" ".join(["defendpp", *sys.argv[1:]]))


def report(evaluation: Positional[Path], output: Path | None = None, overwrite: bool = False) -> None:
    """Show an evaluation again: the table, and one HTML page that needs nothing but itself.

    Example: defendpp report evaluations/mine --output mine.html

    Args:
        evaluation: Folder that `defendpp evaluate` wrote.
        output: The page (default: report.html in that folder).
        overwrite: Replace a page with other content.
    """
    if output is not None and output.is_dir():
        raise ValueError(f"{output} is a folder: name the file that the page is to be")
    _show(evaluation, output or evaluation / "report.html", overwrite=overwrite or output is None)


def check(
    run: Positional[Path],
    others: tuple[Path, ...] = (),
    epsilon: float | None = None,
    norm: Norm = "linf",
    steps: int = 40,
    images: int = 100,
    data: str | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Look for signs that a robust accuracy cannot be believed. Exits with 1 where a check fails.

    A network behind a purifier is attacked straight through it, and it is checked that another stand-in for the
    purifier's gradient does no better.

    Example: defendpp check runs/hardened --others runs/plain

    Args:
        run: Folder of a trained network, or the name of one that comes with the package, such as mnist-robust.
        others: Folders of other networks for the same images; what breaks these is shown to this one.
        epsilon: Budget in pixel units of [0, 1] (default: the paper's L∞ budget for such images).
        norm: Norm of the budget.
        steps: Of PGD, the attack that is checked.
        images: Test images to check on.
        data: Other data than the network was trained on.
        data_root: Folder that holds the data sets.
        device: auto, cpu, cuda, ...
        seed: Of what is random in the attacks.
    """
    from defendpp import checks, runs, threats

    trained, *surrogates = [runs.load_run(folder) for folder in (run, *others)]
    if norm == "l2" and epsilon is None:
        raise ValueError("epsilon must be given for L2, since the paper has no L2 budget")
    split = arguments.test_images([trained, *surrogates], data, data_root, images)
    place = arguments.device(device) or "cpu"
    shown, labels = (each.to(place) for each in split.batch(range(len(split))))
    epsilon = threats.usual_epsilon(trained.image_shape) if epsilon is None else epsilon
    threats.check_budget("pgd", norm, epsilon, {"steps": steps})
    found = checks.check(
        trained.classifier.to(place),
        shown,
        labels,
        epsilon=epsilon,
        norm=norm,
        steps=steps,
        others=[each.classifier.to(place) for each in surrogates],
        seed=seed,
    )
    for each in found:
        print(each)
    failed = [each.name for each in found if each.verdict == "failed"]
    if failed:
        raise ValueError(f"{trained.name}: {len(failed)} of {len(found)} checks failed: {', '.join(failed)}")


def certify(
    run: Positional[Path],
    output: Path,
    sigma: float | None = None,
    samples: int = 10_000,
    alpha: float = 0.001,
    images: int | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Certify a network by randomised smoothing: how far no attack whatever changes its prediction.

    Example: defendpp certify runs/hardened --images 500 --output certificates

    Args:
        run: Folder of a trained network, or the name of one that comes with the package, such as mnist-robust.
        output: Folder for the records; a second call goes on from what is there.
        sigma: Standard deviation of the smoothing noise in pixel units (default: what the network was trained with).
        samples: Noisy copies for each image.
        alpha: Probability that an image's certificate is false.
        images: Certify only so many of the test images.
        data: Other data than the network was trained on.
        data_root: Folder that holds the data sets.
        seed: Of the noise.
        device: auto, cpu, cuda, ...
    """
    from defendpp import adversarial_sets, evaluation, report, runs
    from defendpp.certify import certified_radius, lower_bound

    arguments.no_file(output)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    trained = runs.load_run(run)
    deviation = trained.recipe.noise if sigma is None else sigma
    if deviation == 0:
        raise ValueError(f"{trained.name!r} was trained without noise: give the sigma to smooth it with")
    split = arguments.test_images([trained], data, data_root, images)
    with bar() as progress:
        made = evaluation.certified_records(
            adversarial_sets.network(trained.name, trained.classifier), split, output, sigma=deviation, samples=samples,
            alpha=alpha, data=data or trained.recipe.data, scale=trained.recipe.scale, seed=seed,
            device=arguments.device(device), progress=progress,
        )  # fmt: skip
    _print_whole(report.table(made))
    furthest = certified_radius(lower_bound(samples, samples, alpha), deviation)
    print(f"sigma {deviation:g}, alpha {alpha:g}; {samples} copies can show no radius above {furthest:.2f}")
    print(f"saved in {output}")


def reproduce(
    names: Positional[list[str]],
    scale: Literal["cpu", "paper"] = "cpu",
    results: Path | None = None,
    work: Path = Path("study"),
    data_root: Path | None = None,
    device: str = "auto",
    rows: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    dry_run: bool = False,
    show: bool = False,
    workers: int = 1,
    ray: str | None = None,
) -> None:
    """Reproduce tables and figures of the paper: train and measure what is missing, then print them.

    Example: defendpp reproduce table2 figure6

    Args:
        names: table1 to table8, figure2, figure5 to figure8, variations (what the paper leaves open); or all of these.
            Beyond the paper: robust-mnist, record-mnist, width-mnist, the same of cifar10, parts-mnist, adaptive-mnist.
        scale: paper: the paper's networks and epochs, for a graphics card. cpu: the same, narrower and shorter.
        results: Folder of what is kept: records, results of trainings, tables, figures (default: results/study, or
            results/study-paper at the paper's scale).
        work: Folder of trained networks and adversarial sets, which are large and can be made again.
        data_root: Folder that holds the data sets, or gets them (default: a cache of the user).
        device: auto, cpu, cuda, ...; with several workers or a cluster, cuda asks for a graphics card for each job.
        rows: Train and measure only these rows of the tables, by their names as printed, such as "ours + GN", or as the
            list of jobs has them.
        seeds: Train and measure only these training seeds; a source is chosen by that of the rows it serves.
        dry_run: List the jobs, which are done, and how long the others will take; do nothing.
        show: Do no job: print, and write beside the records, what the records that are there give.
        workers: More than one: so many processes on this machine, by Ray (pip install 'defendpp[ray]').
        ray: Address of a Ray cluster whose machines share these folders; auto for the one this machine belongs to.
    """
    from defendpp import paper, study
    from defendpp.study import Place

    known = (*study.TABLES, *paper.FIGURES)
    if ":" in device:
        raise ValueError(f"the study uses the first card that it sees: set CUDA_VISIBLE_DEVICES, not device {device!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    if not names:
        raise ValueError(f"name at least one of {', '.join(known)}, or all, before all options")
    if unknown := [name for name in names if name not in (*known, "all")]:
        raise ValueError(f"{unknown[0]!r} is none of the study's tables and figures: {', '.join(known)}, all")
    wanted = tuple(dict.fromkeys(each for name in names for each in (study.NAMES if name == "all" else (name,))))
    kept = results or Path("results", "study" if scale == "cpu" else "study-paper")
    place = Place(kept.absolute(), work.absolute())
    failed: RuntimeError | None = None
    for name, chosen in (("rows", rows), ("seeds", seeds)):
        if chosen == ():
            raise ValueError(f"--{name} has nothing after it: name some, or leave it out for all")
    if show and dry_run:
        raise ValueError("show prints and writes tables and figures, and dry-run does nothing: choose one")
    if show and (rows or seeds):
        raise ValueError("rows and seeds choose what is measured, and show prints whole tables: leave them out")
    if show and not place.results.is_dir():
        raise ValueError(
            f"there is nothing to show: {place.results} is no folder; the records lie in the project's repository"
        )
    if not show:
        from defendpp import schedule  # takes seconds to import, and so only here
        from defendpp.reproduce import check_data

        if (rows or seeds) and (figures := [name for name in wanted if name in paper.FIGURES]):
            print(f"rows and seeds choose from tables: nothing is done for {', '.join(figures)}")
        jobs = study.plan(wanted, scale, rows=rows or (), training_seeds=seeds or ())
        left = study.missing(jobs, place)
        finished = schedule.samples(study.plan(known, scale), place) if left else []
        if lost := study.lost(left, place):
            named = "; ".join(f"{each.subject} (threads: {study.threads(each.file(place))})" for each in lost)
            print(
                f"the result is in {place.results} and the weights are not in {place.work} of {named}: what training "
                "these again comes to is refused, with all that needs it, unless it comes to the same weights, which "
                "depend on the number of threads that --workers leaves each; --results NEW measures everything anew"
            )
        if dry_run:
            is_told_apart = len(wanted) > 1 and not (rows or seeds)
            parts = {name: study.plan((name,), scale) for name in wanted} if is_told_apart else {}
            schedule.listing(jobs, left, place, finished, workers, parts)
            return
        if left:
            if device != "auto" and not ray:
                arguments.device(device)
            root = data_root.absolute() if data_root else None
            arguments.writable(place.results, place.work)
            check_data(left, root)
            do = schedule.Doing(place, root, device, bar=workers == 1 and not ray)
            try:
                schedule.run(jobs, left, do, finished, workers=workers, address=ray)
            except RuntimeError as problem:  # what the other jobs came to is printed all the same
                failed = problem
    for name in wanted:
        _print_reproduced(name, scale, place)
    if failed:
        raise failed


def _print_reproduced(name: str, scale: Literal["cpu", "paper"], place: "Place") -> None:
    from rich.console import Console

    from defendpp import study, study_report

    if name not in study.TABLES:
        Console().print(study_report.write_figure(name, scale, place))
        return
    _print_whole(study_report.write_table(name, scale, place))
    print(f"{place.results / name}.md")


def _print_whole(table: "RenderableType") -> None:
    """However narrow the terminal: a line that it breaks is better than a number that lost its last digits."""
    from rich.console import Console

    console = Console()
    width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    Console(width=width).print(table)


def main(argv: list[str] | None = None) -> None:
    """Run a command; every foreseeable trouble ends in one sentence and an exit code that is not 0."""
    commands: dict[str, Callable[..., None]] = {
        "quickstart": quickstart,
        "train": train,
        "attack": attack,
        "evaluate": evaluate,
        "report": report,
        "check": check,
        "certify": certify,
        "reproduce": reproduce,
    }
    if (sys.argv[1:] if argv is None else argv) == ["--version"]:
        print(f"defendpp {version('defendpp')}")
        return
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="defendpp",
            description="Harden an image classifier on clean images, and measure honestly what that bought.",
            args=argv,
        )
    except KeyboardInterrupt:
        print("defendpp: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)  # as shells have it, so that scripts can tell it from a failure
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as problem:
        sys.exit(f"defendpp: {' '.join(str(problem).split())}")


def _about(folder: Path) -> dict[str, Any]:
    """What the last finished evaluation in `folder` was; empty where there is none."""
    path = folder / "evaluation.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _show(folder: Path, page: Path, *, command: str | None = None, overwrite: bool = True) -> None:
    """Print the table of the evaluation in `folder` and write its page."""
    import pandas as pd

    from defendpp import doubts, records, report

    about = _about(folder)
    files = [folder / "records" / name for name in about.get("records", [])]
    made = records.read(files or folder / "records")
    notes = about.get("notes", {}) | ({"Command": command} if command else {}) | ({} if about else UNFINISHED)
    budgets = about.get("budgets", {})
    pictures = {
        name: path
        for name, id_ in made[["network", "network_id"]].drop_duplicates().itertuples(index=False)
        if (path := folder / "pictures" / f"{id_}.npz").is_file()
    }
    others = [path for path in (folder / "records").glob("*.parquet") if about and path not in files]
    beside = doubts.overlooked(made, pd.concat(map(records.read, others)), budgets) if others else []
    text = report.html(
        made,
        pictures,
        title="Who resists what" if about else "Who resists what, so far: unfinished",
        notes=notes,
        budgets=budgets,
        baseline=about.get("baseline"),
        control=about.get("control"),
        checks=about.get("checks"),
        beside=beside,
    )
    report.write_html(text, page, overwrite=overwrite)
    _print_whole(report.table(made, budgets))
    sentences = (*doubts.in_records(made), *beside, *doubts.in_checks(about.get("checks", {})))
    for sentence in sentences if about else (*sentences, *UNFINISHED.values()):
        print(sentence)
    print(f"\nThe whole report: {page.resolve()}")
