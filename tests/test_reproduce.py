"""One job after the other on small networks, against the same thing done by hand."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from defendpp import paper, published, records, reproduce, robustness, threats
from defendpp.adaptive import against_decoder
from defendpp.data import Data, from_tensors, load
from defendpp.purifier import Purified
from defendpp.recipe import Recipe
from defendpp.reproduce import perform
from defendpp.runs import load_run
from defendpp.schedule import listing
from defendpp.study import Job, Making, Measurement, Picture, Place, Subject, Training, lost, needing, threads

SOURCE = Subject("source", "mnist", "resnet18", 0, "cpu")
OTHER = replace(SOURCE, role="none", seed=1)
OURS = replace(SOURCE, role="ours", seed=1)
PURIFIED = replace(SOURCE, role="comdefend", seed=1)
BIM = threats.bim(0.1, steps=3)


@pytest.fixture(scope="module")
def digits() -> Data:
    pixels, labels = load("mnist-5k").train.batch(range(0, 3500, 14))
    return from_tensors((255 * pixels).byte(), labels)


@pytest.fixture(scope="module")
def place(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A study of tiny networks on few digits, whose networks are trained."""

    def small(data: str, network: str, scale: str) -> Recipe:
        return Recipe(data=data, network=network, width=4, epochs=2, batch_size=25, learning_rate=0.05)

    folder = tmp_path_factory.mktemp("study")
    made = Place(folder / "results", folder / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "_plain", small)
        patch.setattr(reproduce, "_data", lambda *_: digits)
        robustness.recipe.cache_clear()
        for each in (SOURCE, OTHER, OURS, PURIFIED):
            perform(Training(each), made)
        yield made
    reproduce._run.cache_clear()
    robustness.recipe.cache_clear()


def rows(job: Measurement, place: Place) -> pd.DataFrame:
    perform(job, place)
    return records.read(job.file(place))


def test_a_training_whose_kept_result_is_of_other_weights_is_not_done(place: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "results", place.work)
    kept = Training(OURS).file(other)
    kept.parent.mkdir(parents=True)
    theirs = json.loads(Training(OURS).file(place).read_text()) | {"id": "another"}
    kept.write_text(json.dumps(theirs | {"result": theirs["result"] | {"seconds": 1.0, "threads": 9}}))
    for _ in range(2):  # what was refused once is refused again
        assert not Training(OURS).is_done(other)
        with pytest.raises(FileExistsError, match=r"other weights than .*threads \(9 before, 1 now\).*--results NEW"):
            perform(Training(OURS), other)


def test_a_network_that_comes_with_the_package_is_not_trained_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.copy(place.run(OURS.recipe), tmp_path / "published" / "mine", "mine")
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    monkeypatch.setattr(reproduce, "train", lambda *_, **__: pytest.fail("it was trained"))
    elsewhere = Place(tmp_path / "results", tmp_path / "work")
    for _ in range(2):  # also where its result is kept already
        perform(Training(OURS), elsewhere)
        assert Training(OURS).is_done(elsewhere)
        run = load_run(elsewhere.run(OURS.recipe))
        assert (run.id, run.name) == (load_run(place.run(OURS.recipe)).id, str(OURS))
        assert run.objective  # its decoder too
        shutil.rmtree(elsewhere.work)


def test_a_network_that_comes_with_the_package_does_not_replace_one_trained_elsewhere(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.copy(place.run(OTHER.recipe), tmp_path / "published" / "mine", "mine")
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    elsewhere = Place(tmp_path / "results", tmp_path / "work")
    kept = Training(OTHER).file(elsewhere)
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps(json.loads(Training(OTHER).file(place).read_text()) | {"id": "another"}))
    monkeypatch.setattr(reproduce, "train", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):  # it would be trained
        perform(Training(OTHER), elsewhere)


def test_a_training_leaves_its_result_beside_the_records(place: Place) -> None:
    kept = json.loads(Training(OURS).file(place).read_text())
    run = load_run(place.run(OURS.recipe))
    assert kept["result"]["validation_accuracy"] == run.result.validation_accuracy
    assert (kept["name"], run.recipe) == ("ours (mnist, ResNet-18, seed 1)", OURS.recipe)
    assert Training(OURS).is_done(place)
    assert threads(Training(OURS).file(place)) == str(torch.get_num_threads())


def test_a_finished_training_is_not_repeated(place: Place) -> None:
    weights = place.run(OURS.recipe) / "classifier.safetensors"
    before = weights.stat().st_mtime_ns
    Training(OURS).file(place).unlink()  # killed between the training and its result
    perform(Training(OURS), place)
    assert Training(OURS).is_done(place)
    assert weights.stat().st_mtime_ns == before


def test_transfer_is_the_sources_images_on_the_target(place: Place, digits: Data) -> None:
    perform(Making(SOURCE, BIM, 20), place)
    found = rows(Measurement(OURS, SOURCE, BIM, 20), place)
    images, labels = digits.test.take(20).batch(range(20))
    source, ours = (load_run(place.run(each.recipe)) for each in (SOURCE, OURS))
    adversarial = BIM.run(source.classifier, images, labels).images
    with torch.no_grad():
        expected = ours.classifier(adversarial).argmax(1)
    assert set(found["knowledge"]) == {"transfer"}
    assert (found["source_id"].iloc[0], found["network_id"].iloc[0]) == (source.id, ours.id)
    assert list(found["prediction"]) == expected.tolist()
    assert list(found["image"]) == digits.test.take(20).index.tolist()
    distance = (adversarial - images).flatten(1).double().norm(dim=1)
    assert np.allclose(found["l2"], distance, atol=0.005)


def test_white_box_is_the_targets_own_and_its_set_is_not_kept(place: Place) -> None:
    job = Measurement(OURS, OURS, BIM, 20)
    found = rows(job, place)
    assert set(found["knowledge"]) == {"white-box"}
    sets = [json.loads(path.read_text()) for path in (place.work / "sets").glob("*/set.json")]
    assert load_run(place.run(OURS.recipe)).id not in {each["source_id"] for each in sets}
    about = pq.read_schema(job.file(place)).metadata
    assert float(about[b"seconds"]) > 0


def test_the_sources_own_row_leaves_its_set_to_the_others(place: Place) -> None:
    perform(Making(SOURCE, threats.fgsm(0.1), 20), place)
    before = {path: path.stat().st_mtime_ns for path in (place.work / "sets").rglob("*.safetensors")}
    found = rows(Measurement(SOURCE, SOURCE, threats.fgsm(0.1), 20), place)
    assert set(found["knowledge"]) == {"white-box"}
    assert {path: path.stat().st_mtime_ns for path in (place.work / "sets").rglob("*.safetensors")} == before


def test_the_distance_of_a_minimal_norm_attack_is_kept_to_four_digits(place: Place, digits: Data) -> None:
    attack = threats.ddn(steps=5)
    found = rows(Measurement(OURS, OURS, attack, 20), place)
    images, labels = digits.test.take(20).batch(range(20))
    generator = torch.Generator().manual_seed(0)
    adversarial = attack.run(load_run(place.run(OURS.recipe)).classifier, images, labels, generator=generator).images
    assert np.allclose(found["l2"], (adversarial - images).flatten(1).double().norm(dim=1), atol=1e-4)


def test_clean_images(place: Place, digits: Data) -> None:
    found = rows(Measurement(OTHER, OTHER), place)
    assert (len(found), set(found["knowledge"])) == (len(digits.test), {"clean"})


def test_comdefend_is_gray_box_under_transfer(place: Place) -> None:
    perform(Making(SOURCE, BIM, 20), place)
    found = rows(Measurement(PURIFIED, SOURCE, BIM, 20), place)
    assert set(found["knowledge"]) == {"gray-box"}


def test_comdefend_white_box_uses_the_gradient_asked_for(place: Place, digits: Data) -> None:
    run = load_run(place.run(PURIFIED.recipe))
    assert isinstance(run.classifier, Purified)
    images, labels = digits.test.take(20).batch(range(20))
    for way in ("straight-through", "identity"):
        found = rows(Measurement(PURIFIED, PURIFIED, BIM, 20, way), place)
        assert set(found["knowledge"]) == {"white-box"}
        assert json.loads(found["settings"].iloc[0])["gradient"] == way
        adversarial = BIM.run(run.classifier.attacked_through(way), images, labels).images
        change = (adversarial - images).flatten(1).double().norm(dim=1)
        assert np.allclose(found["l2"], change, atol=0.005)
        assert change.median() > 0


def test_the_papers_wb_never_sees_the_purifier_at_test_time(place: Place, digits: Data) -> None:
    run = load_run(place.run(PURIFIED.recipe))
    assert isinstance(run.classifier, Purified)
    found = rows(Measurement(PURIFIED, PURIFIED, BIM, 20, "bare"), place)
    images, labels = digits.test.take(20).batch(range(20))
    with torch.no_grad():
        reformed = run.classifier.purifier(images)
    adversarial = BIM.run(run.classifier.classifier, reformed, labels).images
    with torch.no_grad():
        expected = run.classifier.classifier(adversarial).argmax(1)
    assert list(found["prediction"]) == expected.tolist()
    assert found["network"].iloc[0] == "comdefend (mnist, ResNet-18, seed 1), bare"


def arrays(figure: str, place: Place) -> dict[str, np.ndarray]:
    job = Picture(figure, "cpu")
    perform(job, place)
    with np.load(job.file(place)) as found:
        return dict(found)


def test_the_arrays_of_figures_2_5_and_7(place: Place, digits: Data) -> None:
    assert {key.split()[0] for key in arrays("figure2", place)} == {"mnist", "cifar10"}
    images, _ = digits.test.batch(range(8))
    for figure in ("figure5", "figure7"):
        found = arrays(figure, place)
        assert np.abs(found["clean"] / 255 - images.numpy()).max() < 0.5 / 255 + 1e-6
    assert not np.array_equal(found["adversarial"], found["clean"])


def test_figure_8_measures_ours_on_the_sources_images_and_on_its_own(place: Place, digits: Data) -> None:
    found = arrays("figure8", place)
    source, ours = (load_run(place.run(each.recipe)) for each in (SOURCE, OURS))
    assert ours.objective is not None
    clean, labels = digits.test.batch(range(len(digits.test)))
    for protocol, attacked in (("transfer", source), ("white-box", ours)):
        adversarial = threats.fgsm(0.2).run(attacked.classifier, clean, labels).images
        with torch.no_grad():
            rebuilt = ours.objective.classify_and_rebuild(ours.classifier, adversarial)[1][0].clamp(0, 1)
        to_clean, to_attacked = ((rebuilt - each).flatten(1).norm(dim=1) for each in (clean, adversarial))
        assert np.allclose(found[f"{protocol} R"], to_clean / to_attacked, rtol=1e-4)
        assert np.allclose(found[f"{protocol} distance"], (adversarial - clean).flatten(1).norm(dim=1), rtol=1e-4)


def test_a_job_that_fails_leaves_no_file(place: Place) -> None:
    jobs: list[Job] = [
        Measurement(replace(OURS, seed=3), SOURCE, BIM, 20),
        Training(replace(OURS, role="ours, fine-tuned", network="vgg16")),  # whose source was never trained
    ]
    for job in jobs:
        with pytest.raises(FileNotFoundError):
            perform(job, place)
        assert not job.file(place).exists()


def test_data_is_looked_for_that_training_and_measuring_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pretrained network that is left as it is, too: it is validated. ImageNet's test images are others'."""
    asked: list[str] = []
    monkeypatch.setattr(reproduce, "_data", lambda name, *_: asked.append(name))
    monkeypatch.setattr(robustness, "recipe", lambda *_: Recipe(data="imagenet-1000", epochs=0))
    source = Subject("source", "imagenet", "pretrained", 0, "cpu")
    reproduce.check_data([Measurement(source, source)], None)
    assert asked == ["nips2017"]
    reproduce.check_data([Training(source), Making(source, BIM, None)], None)
    assert asked[1:] == ["imagenet-1000", "nips2017"]


def test_one_process_at_a_time_does_a_job(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with reproduce._locked(tmp_path / "locks" / "job"):
            entered.set()

    with reproduce._locked(tmp_path / "locks" / "job"):
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.3)
    other.join(10)
    assert entered.is_set()


def test_a_result_without_weights_is_lost_until_it_is_trained_again(place: Place, tmp_path: Path) -> None:
    elsewhere = Place(place.results, tmp_path / "work")
    jobs: list[Job] = [Training(OTHER), Training(replace(OTHER, seed=2)), Measurement(OTHER, OTHER)]
    assert lost(jobs, elsewhere) == [Training(OTHER)]
    assert lost(jobs, place) == []
    assert needing(jobs, lost(jobs, elsewhere)) == [jobs[0], jobs[2]]


def test_what_hangs_on_lost_weights_is_listed_apart(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Place(place.results, tmp_path / "work")
    jobs: list[Job] = [Training(OTHER), Training(replace(OTHER, seed=2)), Measurement(OTHER, OTHER, BIM, 20)]
    listing(jobs, jobs, elsewhere)
    first, second, third, _, hanging, _ = capsys.readouterr().out.splitlines()
    assert [each[:10] for each in (first, second, third)] == ["no weights", "to do     ", "no weights"]
    assert hanging.startswith("2 of these, about ")


def test_weights_that_were_deleted_are_trained_again(place: Place, tmp_path: Path) -> None:
    """Of the same process they come to the same."""
    elsewhere = Place(tmp_path / "results", tmp_path / "work")
    perform(Training(OTHER), elsewhere)
    (elsewhere.run(OTHER.recipe) / "classifier.safetensors").unlink()
    assert not Training(OTHER).is_done(elsewhere)
    perform(Training(OTHER), elsewhere)
    assert Training(OTHER).is_done(elsewhere)


def test_an_adaptive_attack_is_given_the_decoder_of_its_target(place: Place) -> None:
    weak, strong = (against_decoder([], 0.1, raised="reconstruction", weight=weight, steps=5) for weight in (0.0, 1e5))
    plain, adaptive = (rows(Measurement(OURS, OURS, attack, 20), place) for attack in (weak, strong))
    assert not np.allclose(plain["l2"], adaptive["l2"], atol=0.02)
    plain, adaptive = (rows(Measurement(OTHER, OTHER, attack, 20), place) for attack in (weak, strong))
    assert np.allclose(plain["l2"], adaptive["l2"])  # it has no decoder


def test_a_certificate_is_a_measurement_like_others(place: Place) -> None:
    found = rows(Measurement(OURS, OURS, threats.smoothing(0.1, samples=50), 6), place)
    assert set(found["knowledge"]) == {"certificate"}
    assert len(found) == 6
    assert json.loads(found["settings"].iloc[0])["samples"] == 50
