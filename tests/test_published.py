"""Networks that come with the package: they load by name, are what their records speak of, and have a card."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

import defendpp as dp
from defendpp import cli, data, published
from defendpp.recipe import Recipe
from defendpp.runs import load_run, train

CARDS = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "cards.py"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "tiny"
    train(Recipe(width=4, epochs=1, training_images=64, batch_size=32), data.load("mnist-5k"), folder, progress=False)
    return folder


def test_a_name_is_as_good_as_a_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(published, "FOLDER", trained.parent)
    monkeypatch.chdir(tmp_path)
    assert published.names() == ["tiny"]
    assert load_run("tiny").id == load_run(Path("tiny")).id == load_run(trained).id
    cli.main(["evaluate", "tiny", "--attacks", "fgsm", "--images", "5", "--output", "e"])
    assert "White-box" in capsys.readouterr().out
    small = ["--width", "4", "--epochs", "1", "--training-images", "64", "--batch-size", "32"]
    cli.main(["train", *small, "--start", "tiny", "--output", "tuned"])
    assert load_run("tuned").recipe.start == "tiny"
    other = ["--width", "4", "--epochs", "1", "--training-images", "64", "--batch-size", "32", "--seed", "5"]
    cli.main(["train", *other, "--output", "runs/tiny"])  # one of the user's own beside the new run comes first
    cli.main(["train", *other, "--pretrained", "--epochs", "0", "--start", "tiny", "--output", "runs/copy"])
    assert load_run("runs/copy").id == load_run("runs/tiny").id
    with pytest.raises(FileNotFoundError, match=r"no run in other: .*, and published networks are tiny"):
        load_run("other")
    shutil.copytree(trained, tmp_path / "tiny")  # a folder of the user's own comes first
    (tmp_path / "tiny" / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_run("tiny")


def test_no_card_without_a_network() -> None:
    with pytest.raises(ValueError, match="'mnist-fragile' is none of the published networks"):
        dp.card("mnist-fragile")


@pytest.mark.parametrize("name", published.names())
def test_a_published_network_is_what_the_records_speak_of(name: str) -> None:
    run = load_run(name)
    subject = CARDS["NETWORKS"][name]
    kept = CARDS["PLACE"].results / "networks" / f"{subject.recipe.hash}.json"
    assert run.id == json.loads(kept.read_text())["id"]
    assert (run.name, run.recipe) == (name, subject.recipe)
    assert CARDS["card"](name) == dp.card(name), "run python docs/cards.py"
    shape = (2, *run.image_shape)
    assert run.classifier(torch.rand(shape)).shape == (2, len(run.classes))
