import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from examples import small_network
from torch import nn

from defendpp import checks, evaluation, run_evaluation, threats
from defendpp.adaptive import against_decoder
from defendpp.adversarial_sets import Network, adversarial_set, network, piece_size, predictions, set_folder
from defendpp.attacks import Prepared
from defendpp.certify import certify
from defendpp.data import Data, from_tensors
from defendpp.evaluation import (
    attacked_records,
    certified_records,
    evaluate,
    make_sets,
)
from defendpp.files import write_arrays
from defendpp.objective import defend
from defendpp.purifier import Binarise, Purified
from defendpp.recipe import Recipe
from defendpp.records import join
from defendpp.run_evaluation import evaluate_runs, pictures
from defendpp.runs import train

EVERY = [threats.fgsm(0.1), threats.bim(0.1, steps=3), threats.pgd(0.1, steps=3), threats.ddn(steps=5)]


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    return from_tensors(torch.rand(100, 1, 28, 28, generator=generator), torch.arange(100) % 10, name="noise")


class Always(nn.Module):
    """Predicts one class, whatever comes in, or the one that the first pixel names."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(2 * nn.functional.one_hot(torch.tensor(label), 10).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bias + 0 * images.flatten(1).sum(1, keepdim=True)


def test_a_network_that_is_always_right_or_wrong_on_a_class(data: Data, tmp_path: Path) -> None:
    made = evaluate([network("three", Always(3))], [threats.fgsm(0.1)], data.test, tmp_path, data="noise")
    for knowledge in ("clean", "white-box"):
        rows = made[made["knowledge"] == knowledge]
        assert rows["correct"].tolist() == (rows["label"] == 3).tolist()
        assert set(rows["image"]) == set(data.test.index.tolist())
    attacked = made[made["knowledge"] == "white-box"]
    assert (attacked["success"] == (attacked["label"] != 3)).all()


def test_every_column_agrees_with_the_stored_set(data: Data, tmp_path: Path) -> None:
    target, source = network("target", small_network(1)), network("source", small_network(2))
    attack = threats.ddn(steps=10)
    made = attacked_records([target, source], source, attack, data.test, tmp_path / "set", data="noise", seed=5)
    pieces = list(adversarial_set(source, attack, data.test, tmp_path / "set", data="noise", seed=5))
    adversarial = torch.cat([piece.images for piece in pieces])
    clean, labels = data.test.batch(range(len(data.test)))
    for each, knowledge in ((target, "transfer"), (source, "white-box")):
        rows = made[each.id]
        assert set(rows["knowledge"]) == {knowledge}
        assert set(rows["source"]) == {"source"}
        assert set(rows["seed"]) == {5}
        assert rows["epsilon"].isna().all()
        assert json.loads(rows["settings"].iloc[0]) == {"levels": 256, "steps": 10}
        assert rows["label"].tolist() == labels.tolist()
        assert rows["prediction"].tolist() == each.model(adversarial).argmax(1).tolist()
        assert rows["clean_prediction"].tolist() == each.model(clean).argmax(1).tolist()
        distance = (adversarial - clean).flatten(1)
        np.testing.assert_allclose(rows["l2"], distance.norm(dim=1).numpy(), rtol=1e-5)
        np.testing.assert_allclose(rows["linf"], distance.abs().amax(1).numpy(), rtol=1e-6)
    wrong = made[source.id]["prediction"] != made[source.id]["label"]
    assert (made[source.id]["success"] == wrong).all()


def test_behind_a_purifier_other_gradients_are_followed(data: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hidden = network("hidden", Purified(Binarise(), nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))))
    images, _ = data.test.batch(range(len(data.test)))
    split = from_tensors(images, predictions(hidden.model, images), name="noise").train
    attack = threats.bim(0.2, steps=10)
    made = attacked_records([hidden], hidden, attack, split, tmp_path, data="noise")[hidden.id]
    shown = pictures(hidden, None, attack, split)
    assert json.loads(made["settings"].iloc[0])["gradient"] == "straight-through, identity"
    one = network("hidden", hidden.model.attacked_through("identity"))  # type: ignore[operator]
    assert set_folder(one, attack, split, tmp_path, data="noise") != set_folder(
        hidden, attack, split, tmp_path, data="noise"
    )
    plain = network("plain", small_network())
    both = evaluate([hidden, plain], [attack], split, tmp_path / "both", data="noise")
    assert len(join(both, "hidden", "plain", attack="bim", knowledge="white-box", epsilon=0.2)) == len(split)
    for clean, attacked in (
        (made["clean_prediction"], made["prediction"]),
        (shown["clean_prediction"], shown["prediction"]),
    ):
        assert (clean != attacked).any()


def test_the_checks_of_a_purifier_try_every_stand_in_for_its_gradient(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []

    def checked(model: Prepared, *_: object, views: list[Purified], **__: object) -> list[checks.Check]:
        seen.extend([model.original, *views])
        return []

    monkeypatch.setattr(checks, "check", checked)
    recipe = Recipe(data="noise", width=4, epochs=1, batch_size=32, defence="binarise")
    purified = train(recipe, data, tmp_path / "run", accelerator="cpu", progress=False)
    evaluate_runs([purified], [threats.fgsm(0.2)], data.test.take(20), tmp_path / "e", data="noise")
    assert [each.gradient for each in seen] == ["straight-through", "identity"]


def test_probabilities_are_warned_of(data: Data, tmp_path: Path) -> None:
    certain = network("certain", nn.Sequential(small_network(), nn.Softmax(dim=1)))
    with pytest.warns(UserWarning, match=r"certain: outputs lie in \[0, 1\] and add up to 1"):
        evaluate([certain], [threats.fgsm(0.1)], data.test, tmp_path, data="noise")


def test_nothing_finished_is_done_again_and_an_interruption_loses_nothing(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of 10 images: the work is interrupted after one piece, then finished, then asked for again."""
    for module in ("adversarial_sets", "evaluation"):
        monkeypatch.setattr(f"defendpp.{module}.piece_size", lambda *_: 10)
    target = network("target", small_network())
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    class StopHereError(Exception):
        pass

    def interrupt(_what: str, done: int, _total: int) -> None:
        if done >= 10:
            raise StopHereError

    with pytest.raises(StopHereError):
        evaluate([target], [threats.pgd(0.1, steps=5)], data.test, tmp_path / "a", data="noise", progress=interrupt)
    handle = target.model.register_forward_hook(count)
    resumed = evaluate([target], [threats.pgd(0.1, steps=5)], data.test, tmp_path / "a", data="noise")
    handle.remove()
    once = 1 + 1 + 2 * 2  # made fast, the second piece checked, two predictions of each of the two pieces
    assert forwards == once
    handle = target.model.register_forward_hook(count)
    again = evaluate([target], [threats.pgd(0.1, steps=5)], data.test, tmp_path / "a", data="noise")
    handle.remove()
    assert forwards == once
    whole = evaluate([target], [threats.pgd(0.1, steps=5)], data.test, tmp_path / "b", data="noise")
    assert resumed.equals(again)
    assert resumed.equals(whole)
    assert not list(tmp_path.rglob("*.partial"))


def test_transfer_uses_one_set_for_all_targets_and_never_the_source(data: Data, tmp_path: Path) -> None:
    networks = [network(name, small_network(seed)) for seed, name in enumerate("abc")]
    made = evaluate(networks, [threats.fgsm(0.1)], data.test, tmp_path, data="noise", source=networks[0])
    transferred = made[made["knowledge"] == "transfer"]
    assert list(transferred["network"].unique()) == ["b", "c"]
    assert set(transferred["source"]) == {"a"}
    b, c = (transferred[transferred["network"] == name] for name in "bc")
    assert b["linf"].tolist() == c["linf"].tolist()
    white_box = made[(made["knowledge"] == "white-box") & (made["network"] == "a")]
    assert b["success"].tolist() == white_box["success"].tolist()


def test_what_cannot_be_measured_is_refused_before_any_work(data: Data, tmp_path: Path) -> None:
    one, twin = network("one", small_network(0)), network("twin", small_network(0))
    with pytest.raises(ValueError, match="another network than its target, but 'twin' and 'one' have the same weights"):
        evaluate([one], EVERY, data.test, tmp_path / "x", data="noise", source=twin)
    with pytest.raises(ValueError, match="networks must differ in weights: 'one' and 'twin' do not"):
        evaluate([one, twin], EVERY, data.test, tmp_path / "x", data="noise")
    with pytest.raises(ValueError, match="networks must differ in name"):
        evaluate([one, network("one", small_network(1))], EVERY, data.test, tmp_path / "x", data="noise")
    with pytest.raises(ValueError, match=r"networks must differ in name: 'one' and 'one' do not"):
        evaluate([one], EVERY, data.test, tmp_path / "x", data="noise", source=network("one", small_network(1)))
    with pytest.raises(ValueError, match=r"the attack fgsm 0\.1 is there 2 times"):
        evaluate([one], [*EVERY, threats.fgsm(0.1)], data.test, tmp_path / "x", data="noise")
    with pytest.raises(ValueError, match="no test images in noise"):
        evaluate([one], EVERY, data.test.take(0), tmp_path / "x", data="noise")
    assert not (tmp_path / "x").exists()


def test_damaged_sets_are_named(data: Data, tmp_path: Path) -> None:
    target = network("target", small_network())

    def make() -> None:
        list(adversarial_set(target, threats.fgsm(0.1), data.test, tmp_path, data="noise"))

    make()
    (piece,) = tmp_path.rglob("*.safetensors")
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"is damaged.*remove it, and it is made again"):
        make()
    piece.unlink()
    make()
    assert piece.read_bytes() == whole
    about = json.loads((piece.parent / "set.json").read_text())
    (piece.parent / "set.json").write_text(json.dumps({**about, "epsilon": 0.2}))
    with pytest.raises(ValueError, match=r"holds another adversarial set: epsilon is 0\.2, not 0\.1"):
        make()


def test_other_images_are_another_set_and_other_records(data: Data, tmp_path: Path) -> None:
    """Two data sets of one size share their images' numbers; nothing of one may be taken for the other."""
    target = network("target", small_network())
    other = from_tensors(torch.rand(100, 1, 28, 28), torch.arange(100) % 10, name="noise")
    assert other.test.index.equal(data.test.index)
    for split in (data.test, other.test):
        made = evaluate([target], [threats.fgsm(0.1)], split, tmp_path, data="noise")
        clean, _ = split.batch(range(len(split)))
        assert made["clean_prediction"][: len(split)].tolist() == predictions(target.model, clean).tolist()
        assert made["linf"].max() == pytest.approx(0.1, abs=1e-6)


def test_pictures_are_made_again_only_for_another_attack_or_other_images(data: Data, tmp_path: Path) -> None:
    target, attack, path = network("x", small_network()), threats.bim(0.1, steps=2), tmp_path / "x.npz"
    write_arrays(path, pictures(target, None, attack, data.test))
    assert run_evaluation._is_shown(path, target, attack, data.test)
    assert not run_evaluation._is_shown(path, target, threats.bim(0.1, steps=3), data.test)
    for other in (data.test.take(4), data.train):
        assert not run_evaluation._is_shown(path, target, attack, other)


def test_weights_that_are_moved_can_be_attacked_afterwards() -> None:
    """As on the way to a graphics card, where `to` makes new tensors."""

    class Moving(nn.Flatten):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(784, 10))

        def to(self, *_: object, **__: object) -> "Moving":
            self._apply(torch.clone)  # type: ignore[no-untyped-call]
            return self

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = super().forward(images) @ self.weight
            return logits

    model = Moving()
    images = torch.rand(4, 1, 28, 28)
    labels = predictions(model, images)
    assert not model.weight.is_inference()
    assert threats.bim(0.5, steps=5).run(model, images, labels).success.any()


def test_an_adaptive_set_is_of_the_decoder_that_was_used(data: Data, tmp_path: Path) -> None:
    classifier = small_network()
    objective = defend(classifier, (1, 28, 28))
    source = network("x", classifier)
    folders = [
        set_folder(source, against_decoder(given, 0.1), data.test, tmp_path, data="noise")
        for given in ([], [objective], [defend(small_network(1), (1, 28, 28))])
    ]
    assert folders[0] == folders[2] != folders[1]


def test_networks_are_told_apart_by_more_than_their_weights(data: Data) -> None:
    from defendpp.networks import Normalized

    core = small_network()
    ids = {network("x", each).id for each in (core, Normalized(core, [0.5], [0.5]), Normalized(core, [0.1], [0.5]))}
    assert len(ids) == 3


def test_several_evaluations_share_a_folder_and_sets(data: Data, tmp_path: Path) -> None:
    target = network("target", small_network())
    first = evaluate([target], [threats.fgsm(0.1)], data.test, tmp_path / "a", data="noise", sets=tmp_path / "sets")
    evaluate([target], [threats.fgsm(0.1)], data.test, tmp_path / "a", data="noise", seed=1, sets=tmp_path / "sets")
    renamed = evaluate(
        [network("new name", small_network())], [threats.fgsm(0.1)], data.test, tmp_path / "a", data="noise",
        sets=tmp_path / "sets",
    )  # fmt: skip
    assert set(renamed["network"]) == {"new name"}
    again = evaluate([target], [threats.fgsm(0.1)], data.test, tmp_path / "a", data="noise", sets=tmp_path / "sets")
    assert again.equals(first)
    assert len(list((tmp_path / "sets").iterdir())) == 2  # of two seeds


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_budgets_must_be_at_least_0(epsilon: float) -> None:
    for make in (threats.fgsm, threats.bim, threats.pgd):
        with pytest.raises(ValueError, match=f"epsilon must be at least 0 and finite.*not {epsilon}"):
            make(epsilon)


def test_a_budget_in_units_of_255_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 1, not 8: 8/255\?"):
        threats.pgd(8)
    assert threats.pgd(8, norm="l2").epsilon == 8


@pytest.mark.parametrize("steps", [1, 5, 20, 40, 100])
def test_few_steps_can_still_cross_the_budget(steps: int) -> None:
    assert threats.bim(0.2, steps=steps).settings["relative_step"] * steps >= 2.5


def test_steps_are_checked() -> None:
    with pytest.raises(ValueError, match="pgd needs at least 1 of restarts, not 0"):
        threats.pgd(0.1, restarts=0)


@pytest.mark.parametrize(("shape", "epsilon"), [((1, 28, 28), 0.2), ((3, 32, 32), 0.05), ((3, 224, 224), 0.01)])
def test_the_usual_budget_is_the_paper_s(shape: tuple[int, int, int], epsilon: float) -> None:
    assert threats.usual_epsilon(shape) == epsilon


def test_pieces_are_smaller_for_larger_images_and_dear_attacks(data: Data) -> None:
    assert piece_size(data.test) == piece_size(data.test, threats.cascade(0.1)) == 500
    assert piece_size(data.test, threats.auto_attack(0.1)) == 100
    large = from_tensors(torch.zeros(20, 3, 224, 224, dtype=torch.uint8), torch.arange(20) % 2)
    assert piece_size(large.test) == 10


def test_pictures_show_the_attack_and_what_the_decoder_rebuilds(data: Data) -> None:
    classifier = small_network()
    objective = defend(classifier, (1, 28, 28))
    classifier.eval()
    shown = pictures(Network("x", classifier, "id"), objective, threats.fgsm(0.1), data.test, n=3)
    images, _ = data.test.batch(range(3))
    assert np.array_equal(shown["clean"], images.numpy())
    assert np.abs(shown["adversarial"] - shown["clean"]).max() == pytest.approx(0.1, abs=1e-6)
    assert shown["prediction"].tolist() == predictions(classifier, torch.tensor(shown["adversarial"])).tolist()
    expected = objective.eval().classify_and_rebuild(classifier, images)[1][0].detach().clamp(0, 1)
    np.testing.assert_allclose(shown["clean_reconstruction"], expected.numpy(), atol=1e-6)
    assert not classifier.training
    assert "clean_reconstruction" not in pictures(Network("x", classifier, "id"), None, EVERY[1], data.test, n=3)


def test_shares_made_by_three_are_the_sets_that_one_makes(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes something, nobody makes a piece twice, and then nothing is left to attack."""
    for module in ("adversarial_sets", "evaluation"):
        monkeypatch.setattr(f"defendpp.{module}.piece_size", lambda *_: 3)
    networks = [network("target", small_network()), network("other", small_network(1))]
    chosen = [threats.pgd(0.1, steps=2), threats.fgsm(0.1)]
    alone = evaluate(networks, chosen, data.test, tmp_path / "alone", data="noise", source=networks[0])
    made = []
    for i in range(3):
        make_sets(networks, chosen, data.test, tmp_path / "shared", (i, 3), data="noise", source=networks[0])
        made.append(len([*tmp_path.glob("shared/sets/*/*.safetensors")]))
    assert 0 < made[0] < made[1] < made[2] == len([*tmp_path.glob("alone/sets/*/*.safetensors")])
    # not made fast, so it cannot be attacked
    monkeypatch.setattr("defendpp.adversarial_sets.ready", lambda each, *_: each.fast)
    together = evaluate(networks, chosen, data.test, tmp_path / "shared", data="noise", source=networks[0])
    assert together.equals(alone)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shared/sets/*/*.safetensors")}
    make_sets(networks, chosen, data.test, tmp_path / "shared", (0, 1), data="noise", source=networks[0])
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("shared/sets/*/*.safetensors")}


def test_a_certificate_is_recorded_image_by_image_and_goes_on_where_it_was(data: Data, tmp_path: Path) -> None:
    """Against `certify` called by hand with the random numbers of each piece."""
    target = network("small", small_network(1))

    def certified(folder: Path) -> pd.DataFrame:
        return certified_records(target, data.test.take(20), folder, sigma=0.2, samples=100, data="noise", seed=3)

    made = certified(tmp_path / "a")
    images, labels = data.test.take(20).batch(range(20))
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    found = certify(target.model, images, sigma=0.2, samples=100, generator=generator)
    assert made["prediction"].tolist() == found.prediction.tolist()
    assert np.allclose(made["l2"], found.radius)
    assert made["queries"].tolist() == found.samples.tolist()
    assert made["correct"].tolist() == (found.prediction == labels).tolist()
    assert set(made["knowledge"]) == {"certificate"}
    assert json.loads(made["settings"].iloc[0]) == {"sigma": 0.2, "samples": 100, "alpha": 0.001}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    assert certified(tmp_path / "a").equals(made)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "CERTIFIED_AT_ONCE", 8)
        shared = certified(tmp_path / "b")
    assert len(list((tmp_path / "b").iterdir())) == 3
    assert shared["image"].tolist() == made["image"].tolist()
