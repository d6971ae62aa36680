"""The command line as a user meets it; the heavy paths with the smallest networks."""

import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from defendpp import checks, cli, doubts, records, reproduce, schedule
from defendpp.checks import Check
from defendpp.paper import TABLES
from defendpp.runs import load_run

TINY = ["--width", "4", "--epochs", "1", "--training-images", "64", "--batch-size", "32", "--accelerator", "cpu"]


def run(*arguments: str | Path) -> None:
    cli.main([str(argument) for argument in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one sentence that a command ends in, which must not exit with 0."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    message = stopped.value.code
    assert message not in (None, 0)
    assert "Traceback" not in capsys.readouterr().err
    assert isinstance(message, str)
    assert "\n" not in message
    return message


def test_attacks_by_default_are_the_papers_and_one_to_rely_on(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", runs["plain"], "--steps", "1", "--images", "4", "--output", tmp_path / "e")
    attacks = set(records.read(tmp_path / "e" / "records")["attack"])
    assert attacks == {"none", "fgsm", "bim", "pgd", "carlini_wagner", "ddn", "cascade"}


def test_training_says_how_many_images_each_epoch_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for images, said in (("60", True), ("64", False)):
        run("train", "--output", tmp_path / images, *TINY, "--training-images", images)
        told = "each epoch leaves out 28 of 60 images, which do not fill a batch of 32"
        assert (told in capsys.readouterr().out) == said


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    settings = {"plain": [], "other": ["--seed", "1"], "hardened": ["--defence", "defend", "--noise", "0.3"]}
    for name, extra in settings.items():
        run("train", "--output", folder / name, "--name", name, *TINY, *extra)
    return {name: folder / name for name in settings}


def test_the_main_job_train_evaluate_report(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--attacks", "fgsm", "pgd", "ddn", "--steps", "3", "--epsilons", "0.1", "0.2", "--images", "12"]
    run("evaluate", *runs.values(), "--source", runs["plain"], "--output", tmp_path / "e", *chosen)
    shown = capsys.readouterr().out
    assert "White-box" in shown
    assert "Transfer" in shown
    assert str((tmp_path / "e" / "report.html").resolve()) in shown
    made = records.read(tmp_path / "e" / "records")
    assert len(made) == 12 * (3 + 3 * 5 + 2 * 5)
    assert set(made["epsilon"].dropna()) == {0.1, 0.2}
    about = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert about["baseline"] == "plain"
    assert about["control"] == "other"
    assert set(about["checks"]) == {"plain", "other", "hardened"}
    assert all(len(found) == 13 for found in about["checks"].values())
    assert all(sentence in " ".join(shown.split()) for sentence in doubts.in_checks(about["checks"]))
    assert "checks, which attack with PGD whatever was chosen here" in (tmp_path / "e" / "report.html").read_text()

    page = (tmp_path / "e" / "report.html").read_text()
    run("report", tmp_path / "e", "--output", tmp_path / "again.html")
    assert "Reconstructed" in page or "reconstructed" in page
    assert fails(capsys, "report", tmp_path / "e", "--output", runs["plain"] / "run.json").startswith(
        f"defendpp: {runs['plain'] / 'run.json'} is there already"
    )


def test_attacks_that_others_report_and_those_that_use_the_decoder(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["adaptive-bottleneck", "adaptive-reconstruction", "square", "auto-attack"]
    both = [runs["plain"], runs["hardened"]]
    run("evaluate", *both, "--attacks", *chosen, "--steps", "5", "--images", "10", "--output", tmp_path / "e")
    made = records.read(tmp_path / "e" / "records")
    assert set(made["attack"]) == {"none", *(name.replace("-", "_") for name in chosen)}
    assert "worst" in capsys.readouterr().out
    run("evaluate", *both, "--attacks", "pgd", "pixel-flips", "--norm", "l2", "--epsilons", "0.5", "--images", "10",
        "--output", tmp_path / "l2", "--steps", "5")  # fmt: skip
    made = records.read(tmp_path / "l2" / "records")
    attacked = made[made["attack"] != "none"]
    assert set(attacked["attack"]) == {"pgd", "pixel_flips"}
    assert set(attacked["norm"]) == {"l2"}
    assert 0 < attacked["l2"].max() <= 0.5 + 1e-5
    run("evaluate", runs["plain"], "--attacks", "ddn", "--norm", "l2", "--images", "4", "--output", tmp_path / "ddn",
        "--steps", "2")  # fmt: skip
    other_split = tmp_path / "other split"
    run("train", "--output", other_split, "--name", "split 1", "--split-seed", "1", *TINY)
    arguments = ("evaluate", runs["plain"], "--norm", "l2", "--output", tmp_path / "no")
    assert "the paper has no L2 budget" in fails(capsys, *arguments)
    assert "fgsm is for L∞" in fails(capsys, *arguments, "--epsilons", "1", "--attacks", "pgd", "fgsm")
    for names, message in (
        (["--attacks", "pixel-flips"], "pixel-flips has an L2 budget"),
        (["--norm", "l2", "--attacks", "minimal-pgd"], "minimal-pgd is for L∞"),
        (["--epsilons", "0.2", "--attacks", "ddn", "minimal-pgd"], "ddn looks for the smallest distance"),
        (["--attacks", "cascade", "--epsilons", "8"], "at most 1, not 8: 8/255?"),
        (["--images", "0"], "images must be at least 1, not 0"),
        (["--data", "mnist-5k"], "test images of one may be training images of the other"),
    ):
        also = [other_split] if "--data" in names else []
        assert message in fails(capsys, "evaluate", runs["plain"], *also, "--output", tmp_path / "no", *names)
    assert "at most 1, not 8: 8/255?" in fails(capsys, "check", runs["plain"], "--epsilon", "8")
    assert not (tmp_path / "no").exists()


def test_two_processes_record_what_one_records(runs: dict[str, Path], tmp_path: Path) -> None:
    """550 images are two pieces, one for each process."""
    command = ["evaluate", str(runs["plain"]), "--images", "550", "--attacks", "pgd", "--steps", "2", "--device", "cpu"]
    for devices in ("1", "2"):
        arguments = [*command, "--output", str(tmp_path / devices), "--devices", devices]
        script = tmp_path / "evaluate.py"  # a file, because every process starts the program anew
        script.write_text("from defendpp.cli import main; main()")
        done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("The whole report") == 1
    one, two = (sorted(tmp_path.glob(f"{devices}/records/*.parquet")) for devices in ("1", "2"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert len(one) == 2


def test_attack_makes_a_set_that_can_be_finished_later(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("attack", runs["plain"], "--attack", "bim", "--steps", "2", "--images", "10", "--output")
    for _ in range(2):
        run(*arguments, tmp_path / "sets")
        assert "10 images" in capsys.readouterr().out
    (made,) = (tmp_path / "sets").rglob("*.safetensors")
    written = made.stat().st_mtime_ns
    run("attack", runs["plain"], "--attack", "ddn", "--steps", "2", "--images", "10", "--output", tmp_path / "sets")
    assert len(list((tmp_path / "sets").iterdir())) == 2
    chosen = ["--attacks", "bim", "--steps", "2", "--images", "10", "--sets", str(tmp_path / "sets")]
    run("evaluate", runs["other"], "--source", runs["plain"], "--output", tmp_path / "e", *chosen)
    assert made.stat().st_mtime_ns == written  # the set was used, not made again
    assert not (tmp_path / "e" / "sets").exists()
    message = fails(capsys, "attack", runs["plain"], "--attack", "ddn", "--epsilon", "1", "--output", tmp_path / "sets")
    assert "ddn looks for the smallest distance and has no epsilon" in message


def parquet(folder: Path) -> Path:
    """CIFAR-10's layout on the Hugging Face hub."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, n in (("train", 80), ("test", 20)):
        images = []
        for _ in range(n):
            picture = folder / "x.png"
            Image.fromarray(generator.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(picture)
            images.append({"bytes": picture.read_bytes(), "path": None})
            picture.unlink()
        pq.write_table(
            pa.table({"img": images, "label": [i % 4 for i in range(n)]}), folder / f"{part}-00000-of-00001.parquet"
        )
    return folder


def image_folder(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(generator.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / label / f"{i}.png")
    return folder


@pytest.mark.parametrize("make", [parquet, image_folder])
@pytest.mark.parametrize("network", ["resnet18", "timm/resnet18"])
def test_training_on_one_s_own_data_with_one_s_own_network(make, network: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    width = ["--width", "4"] if network == "resnet18" else []
    settings = ["--defence", "defend", "--network", network, "--epochs", "1", "--batch-size", "16", *width]
    run("train", "--data", make(tmp_path / "data"), "--output", tmp_path / "run", *settings, "--accelerator", "cpu")
    assert load_run(tmp_path / "run").image_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere/at/all"], "there is no file or folder at nowhere/at/all"),
        (["--data", "mnits"], "'mnits' is neither a path nor one of mnist-5k"),
        (["--network", "resnet19"], "'resnet19' is no network of defendpp, timm or torchvision"),
        (["--epochs", "0"], "epochs must be above 0, or 0 for a pretrained network"),
        (["--batch-size", "1"], "batch_size must be at least 2"),
        (["--noise", "-1"], "noise must be at least 0, not -1"),
        (["--learning", "alternating"], "alternating learning needs a decoder"),
        (["--defence", "defend", "--shared-blocks", "9"], "shared blocks must be between 1 and 4"),
        (["--defence", "defend", "--blocks", "layer9"], "no submodule 'layer9'"),
        (["--start", "nowhere"], "start nowhere is no folder of a finished run"),
    ],
)
def test_bad_input_to_train_is_one_sentence_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, "train", *TINY, "--output", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_bad_input_to_evaluate_is_one_sentence(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = ("evaluate", runs["plain"], "--output", tmp_path / "e", "--images", "4", "--steps", "1")
    assert "the same weights: that is white-box" in fails(capsys, *evaluation, "--source", runs["plain"])
    assert "at least one trained network" in fails(capsys, "evaluate", "--output", tmp_path / "e")
    assert "epsilon must be at least 0" in fails(capsys, *evaluation, "--epsilons", "-0.1")
    assert "cannot take 4000 images" in fails(capsys, *evaluation, "--images", "4000")
    for nothing in (tmp_path, runs["plain"] / "run.json"):
        assert "there is no run in" in fails(capsys, "evaluate", nothing, "--output", tmp_path / "e")
    assert "steps must be at least 1, not 0" in fails(capsys, *evaluation, "--steps", "0")
    assert "devices and nodes must be at least 1, not 0 and 1" in fails(capsys, *evaluation, "--devices", "0")
    assert "is named 2 times, expected once" in fails(capsys, *evaluation[:2], runs["plain"], *evaluation[2:])
    (tmp_path / "file").touch()
    for command in ("evaluate", "attack", "certify"):
        message = fails(capsys, command, runs["plain"], "--output", tmp_path / "file" / "below")
        assert "is, or lies below, a file: name a folder" in message
    adaptive = fails(capsys, *evaluation, "--attacks", "adaptive-bottleneck")
    assert "moves what a decoder ties to the image, and no network here has a decoder" in adaptive
    one_step = ("evaluate", runs["plain"], "--output", tmp_path / "e", "--attacks", "fgsm")
    assert "fgsm has no number of steps, but 3 was given" in fails(capsys, *one_step, "--steps", "3")
    assert "but 2 was given with fgsm" in fails(capsys, *one_step, "--restarts", "2")
    message = fails(capsys, *evaluation, "--data", parquet(tmp_path / "data"))
    assert "has 4 classes, but 'plain' knows 10" in message
    assert "the digits of mnist-5k are training images of mnist" in fails(capsys, *evaluation, "--data", "mnist")
    assert "cannot be used here" in fails(capsys, *evaluation, "--device", "xpu")
    assert "the attack fgsm 0.1 is there 2 times" in fails(capsys, *evaluation, "--epsilons", "0.1", "0.1")
    assert not (tmp_path / "e").exists()
    assert "there are no records at" in fails(capsys, "report", tmp_path / "nowhere")


def test_the_page_of_an_earlier_evaluation_is_kept(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", runs["plain"], "--attacks", "fgsm", "--images", "4", "--output", tmp_path)
    assert "interrupted" not in capsys.readouterr().out
    run("evaluate", runs["plain"], "--attacks", "bim", "--steps", "1", "--images", "4", "--output", tmp_path)
    (earlier,) = tmp_path.glob("report-*.html")
    assert f"is {earlier} now" in capsys.readouterr().out
    assert "FGSM" in earlier.read_text()
    run("evaluate", runs["plain"], "--attacks", "bim", "--steps", "1", "--images", "2", "--output", tmp_path)
    assert len([*tmp_path.glob("report-*.html")]) == 2


def test_a_report_tells_what_stronger_attacks_beside_it_found(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for attacks in (["fgsm"], ["bim", "--steps", "1"]):
        run("evaluate", runs["plain"], "--attacks", *attacks, "--images", "4", "--output", tmp_path)
    told: list[bool] = []

    def overlooked(made: pd.DataFrame, others: pd.DataFrame, budgets: dict[str, float]) -> list[str]:
        told.append(set(made["attack"]) == {"none", "bim"} and "fgsm" in set(others["attack"]))
        return ["Doubt: a stronger one."]

    monkeypatch.setattr(doubts, "overlooked", overlooked)
    run("report", tmp_path)
    assert told == [True]
    assert "Doubt: a stronger one." in capsys.readouterr().out
    assert "a stronger one." in (tmp_path / "report.html").read_text()


def test_the_report_of_an_interrupted_evaluation_says_so(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", runs["plain"], "--attacks", "fgsm", "--images", "4", "--output", tmp_path)
    (tmp_path / "evaluation.json").unlink()  # written last
    run("report", tmp_path)
    assert "if `defendpp evaluate` was interrupted, networks or attacks are missing" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "Unfinished" in page
    assert "so far: unfinished</h1>" in page


def test_an_existing_run_is_not_touched(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = (runs["plain"] / "classifier.safetensors").read_bytes()
    run("train", "--output", runs["plain"], "--name", "plain", *TINY)
    assert "holds this run already: it is not trained again" in capsys.readouterr().err
    message = fails(capsys, "train", "--output", runs["plain"], "--name", "plain", *TINY, "--seed", "7")
    assert "holds a finished run of another recipe (seed is 0, not 7)" in message
    assert (runs["plain"] / "classifier.safetensors").read_bytes() == before


def test_corrupt_images_and_labels_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "images")
    (folder / "cat" / "3.png").write_bytes(b"not a picture")
    message = fails(capsys, "train", "--data", folder, *TINY, "--output", tmp_path / "run")
    assert "3.png" in message
    labels = parquet(tmp_path / "labels")
    frame = pd.read_parquet(labels / "train-00000-of-00001.parquet")
    frame.loc[0, "label"] = -1
    pq.write_table(pa.Table.from_pandas(frame), labels / "train-00000-of-00001.parquet")
    message = fails(capsys, "train", "--data", labels, *TINY, "--output", tmp_path / "run")
    assert "label -1" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [[], ["quickstart"], ["train"], ["attack"], ["evaluate"], ["report"]])
def test_help_shows_an_example_and_loads_no_torch(command: list[str]) -> None:
    code = (
        "import sys, defendpp.cli\n"
        f"try: defendpp.cli.main({[*command, '--help']!r})\n"
        "except SystemExit as stopped: assert stopped.code in (0, None)\n"
        "assert 'torch' not in sys.modules"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "defendpp" in done.stdout
    assert "Example" in done.stdout
    assert time.monotonic() - started < 10  # below one second on an idle machine


def test_an_interrupt_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("defendpp.data.load", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run("train", "--output", "x")
    assert stopped.value.code == 130
    assert "the same command goes on where it was" in capsys.readouterr().err


def test_another_split_s_test_images_are_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train", "--output", tmp_path / "run", "--split-seed", "1", *TINY)
    message = fails(capsys, "evaluate", runs["plain"], tmp_path / "run", "--output", tmp_path / "e")
    assert "test images of one may be training images of the other" in message


def test_runs_of_one_name_are_told_apart_by_their_folders(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in ("5", "6"):
        run("train", "--output", tmp_path / seed, "--seed", seed, *TINY)
    folders = (tmp_path / "5", tmp_path / "6")
    run("evaluate", *folders, "--output", tmp_path / "e", "--attacks", "fgsm", "--images", "4")
    made = records.read(tmp_path / "e" / "records")
    assert set(made["network"]) == {"no defence (5)", "no defence (6)"}
    # Another evaluation into the same folder shows its own records, and the first stays readable.
    run("evaluate", *folders, "--output", tmp_path / "e", "--attacks", "fgsm", "--images", "6")
    assert "n = 6 images" in capsys.readouterr().out


def test_an_accelerator_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "train", "--output", tmp_path / "run", *TINY[:-2], "--accelerator", "mps")
    assert "accelerator 'mps' cannot be used here" in message
    assert not (tmp_path / "run").exists()


def test_a_folder_whose_images_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new image moves the split, so that former training images would be tested on."""
    folder = image_folder(tmp_path / "images")
    run("train", "--data", folder, "--output", tmp_path / "run", *TINY[:4], "--batch-size", "16", *TINY[-2:])
    (folder / "cat" / "zz.png").write_bytes((folder / "dog" / "0.png").read_bytes())
    message = fails(capsys, "evaluate", tmp_path / "run", "--attacks", "fgsm", "--output", tmp_path / "e")
    assert "are not what they were when 'no defence' was trained" in message


def test_reproduce_lists_its_jobs_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("reproduce", "figure7", "--dry-run", "--results", tmp_path / "r", "--work", tmp_path / "w")
    *jobs, total, rate = capsys.readouterr().out.splitlines()
    assert jobs == [
        "to do       train source (mnist, ResNet-18, seed 0)",
        "to do       train ours (mnist, ResNet-18, seed 1)",
        "to do       arrays of figure7",
    ]
    assert total.startswith("3 jobs, 3 to do: about ")
    assert rate == "Nothing like it was done yet: counted at 2e+10 operations a second, one processor core's"
    both = ("figure7", "figure2", "figure7")
    run("reproduce", *both, "--dry-run", "--results", tmp_path / "r", "--work", tmp_path / "w")
    *jobs, first, second, _, _ = capsys.readouterr().out.splitlines()
    assert len(jobs) == 4  # figure 2 needs no network
    assert first.startswith("figure7: 0 of 3 jobs done, about ")
    assert second.startswith("figure2: 0 of 1 jobs done, about ")
    assert not list(tmp_path.iterdir())


def test_reproduce_does_some_rows_and_seeds_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen: list[str | Path] = ["--rows", "ours + GN", "noise alone", "--seeds", "2", "--dry-run"]
    run("reproduce", "table2", "variations", *chosen)
    *jobs, _ = capsys.readouterr().out.splitlines()
    assert {job.split("train ")[1] for job in jobs if "train " in job} == {
        "source (mnist, ResNet-18, seed 4)",
        "ours + GN (mnist, ResNet-18, seed 2)",
        "noise (mnist, ResNet-18, seed 2)",
    }
    assert "'oars' is no row of table2" in fails(capsys, "reproduce", "table2", "--rows", "oars", "--dry-run")
    assert "show prints whole tables" in fails(capsys, "reproduce", "table2", "--rows", "ours", "--show")
    assert "--rows has nothing after it" in fails(capsys, "reproduce", "table2", "--dry-run", "--rows")
    assert "--seeds has nothing after it" in fails(capsys, "reproduce", "table2", "--dry-run", "--seeds")
    assert "choose one" in fails(capsys, "reproduce", "table2", "--dry-run", "--show")
    run("reproduce", "table2", "--rows", "none", "--seeds", "2", "--dry-run", "--results", tmp_path / "r")
    assert "train none (mnist, ResNet-18, seed 2)" in capsys.readouterr().out


def test_the_module_is_the_command_and_has_a_version() -> None:
    done = subprocess.run([sys.executable, "-m", "defendpp", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"defendpp {version('defendpp')}\n"


def test_reproduce_shows_what_is_there_without_doing_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").mkdir()
    run("reproduce", "table4", "figure7", "--show", "--results", tmp_path / "r", "--work", tmp_path / "w")
    shown = capsys.readouterr().out
    assert "56.35" in shown  # published
    assert "not measured yet" in shown
    assert not (tmp_path / "w").exists()


def test_reproduce_refuses_a_table_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "reproduce", "table9", "--results", tmp_path / "r", "--work", tmp_path / "w")
    assert "'table9' is none of the study's tables and figures: table1" in message
    message = fails(capsys, "reproduce", "table1", "--device", "cuda:1", "--results", tmp_path / "r")
    assert "set CUDA_VISIBLE_DEVICES, not device 'cuda:1'" in message
    message = fails(capsys, "reproduce", "table1", "--workers", "0", "--results", tmp_path / "r")
    assert message.endswith("workers must be at least 1, not 0")
    assert "name at least one of table1" in fails(capsys, "reproduce", "--results", tmp_path / "r")
    message = fails(capsys, "reproduce", "table1", "--show", "--results", tmp_path / "r")
    assert f"there is nothing to show: {tmp_path / 'r'} is no folder; " in message
    assert not list(tmp_path.iterdir())


def test_reproduce_looks_for_what_it_needs_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    message = fails(capsys, "reproduce", "figure7", "--results", tmp_path / "file", "--work", tmp_path / "w")
    assert message.endswith(f"{tmp_path / 'file'} cannot be written to: File exists")
    message = fails(
        capsys, "reproduce", "table4", "--data-root", tmp_path, "--results", tmp_path / "r", "--work", tmp_path / "w"
    )
    assert f"the study needs imagenet-1000 in {tmp_path} (--data-root): " in message
    assert not any((tmp_path / "w").iterdir())


def test_a_table_loses_no_digit_where_it_is_wider_than_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    (tmp_path / "r").mkdir()
    run("reproduce", "table2", "--show", "--results", tmp_path / "r")
    shown = capsys.readouterr().out
    published = TABLES["table2"].rows[0].published
    assert all(f"{value:.2f}" in shown for value in published.values())
    assert "Cascade" in shown
    assert str(tmp_path / "r" / "table2.md") in shown


def test_reproduce_prints_what_there_is_where_a_job_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("1 of 3 jobs failed")

    monkeypatch.setattr(schedule, "run", fail)
    monkeypatch.setattr(reproduce, "check_data", lambda *_: None)
    with pytest.raises(SystemExit, match="1 of 3 jobs failed"):
        run("reproduce", "figure7", "--results", tmp_path / "r", "--work", tmp_path / "w")
    assert "figure7" in capsys.readouterr().out


def test_check_says_what_it_found_and_fails_where_something_is_wrong(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Check("gradients", "passed", "all fine"), Check("converged", "failed", "not yet")]
    seen: dict[str, object] = {}

    def checked(model: object, images: torch.Tensor, labels: torch.Tensor, **settings: object) -> list[Check]:
        seen.update(settings, n=len(images))
        return found

    monkeypatch.setattr(checks, "check", checked)
    message = fails(capsys, "check", runs["hardened"], "--others", runs["plain"], "--images", "7", "--epsilon", "0.1")
    assert message == "defendpp: hardened: 1 of 2 checks failed: converged"
    assert (seen["n"], seen["epsilon"], len(seen["others"])) == (7, 0.1, 1)  # type: ignore[arg-type]
    found.pop()
    run("check", runs["hardened"])
    assert capsys.readouterr().out == "passed      gradients: all fine\n"
    assert seen["epsilon"] == 0.2
    assert "epsilon must be given for L2" in fails(capsys, "check", runs["hardened"], "--norm", "l2")


def test_certify_prints_certified_accuracy(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("certify", runs["hardened"], "--images", "4", "--samples", "50", "--output", tmp_path / "c")
    shown = capsys.readouterr().out
    assert "Certified: the smoothed classifier" in " ".join(shown.split())
    made = records.read(tmp_path / "c")
    assert (len(made), json.loads(made["settings"].iloc[0])["sigma"]) == (4, 0.3)
    assert "sigma 0.3, alpha 0.001; 50 copies can show no radius above 0.34" in shown  # 0.3 Φ⁻¹(0.001^(1/50))
    message = fails(capsys, "certify", runs["plain"], "--output", tmp_path / "d")
    assert "was trained without noise: give the sigma" in message
    assert not (tmp_path / "d").exists()
