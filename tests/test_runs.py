import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from scipy.stats import norm
from torch import nn

from defendpp import networks, runs
from defendpp.attacks import fgsm
from defendpp.data import Data, Images, from_tensors
from defendpp.networks import fingerprint
from defendpp.objective import Defend, cross_entropy
from defendpp.purifier import Purified
from defendpp.recipe import Recipe
from defendpp.runs import build_classifier, build_objective, load_run, train

PLAIN = Recipe(data="tensors", width=4, epochs=1, batch_size=32, learning_rate=0.05)
HARDENED = dataclasses.replace(PLAIN, defence="defend", noise=0.2, shared_blocks=3)


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (100, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return from_tensors(images, torch.arange(100) % 4)


@pytest.fixture(scope="module")
def hardened(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "hardened"
    train(HARDENED, data, folder, accelerator="cpu", progress=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_read_as_it_was_trained(data: Data, tmp_path: Path) -> None:
    run = train(HARDENED, data, tmp_path / "run", name="mine", accelerator="cpu", progress=False)
    again = load_run(tmp_path / "run")
    assert (again.name, again.recipe, again.id, again.result) == ("mine", HARDENED, run.id, run.result)
    assert again.classes == ("0", "1", "2", "3")
    images, _ = data.test.batch(range(5))
    assert isinstance(run.objective, Defend)
    assert isinstance(again.objective, Defend)
    for a, b in zip(
        run.objective.classify_and_rebuild(run.classifier, images)[1],
        again.objective.classify_and_rebuild(again.classifier, images)[1],
        strict=True,
    ):
        assert torch.equal(a, b)
    assert not any(module.training for module in again.classifier.modules())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_saved_classifier_is_the_plain_architecture_and_nothing_else(data: Data, hardened: Path) -> None:
    """The decoder is thrown away: a Defend++ checkpoint is one of the undefended network, name by name."""
    saved = safetensors.torch.load_file(hardened / "classifier.safetensors")
    plain = networks.build("resnet18", classes=4, channels=1, image_size=28, width=4)
    assert {name: t.shape for name, t in saved.items()} == {name: t.shape for name, t in plain.state_dict().items()}
    plain.load_state_dict(saved)
    images, _ = data.test.batch(range(5))
    assert torch.equal(plain.eval()(images), load_run(hardened).classifier(images))
    assert type(load_run(hardened).classifier) is type(plain)


def test_initial_weights_depend_on_the_seed_and_not_on_the_defence() -> None:
    def weights(recipe: Recipe) -> str:
        return fingerprint(build_classifier(recipe, 4, (1, 28, 28)))

    torch.manual_seed(5)
    assert weights(PLAIN) == weights(HARDENED)
    assert weights(PLAIN) != weights(dataclasses.replace(PLAIN, seed=1))


@pytest.mark.parametrize("by_path", [True, False])
def test_a_run_starts_from_another_given_by_path_or_beside_it(
    data: Data, hardened: Path, tmp_path: Path, by_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fit(classifier: nn.Module, *_: object, **__: object) -> None:
        seen.append(fingerprint(classifier))
        raise InterruptedError

    monkeypatch.setattr(runs, "fit", fit)
    recipe = dataclasses.replace(PLAIN, start=str(hardened) if by_path else hardened.name)
    with pytest.raises(InterruptedError):
        train(recipe, data, (tmp_path if by_path else hardened.parent) / "new", progress=False)
    assert seen == [load_run(hardened).id]


def test_a_finished_run_is_read_by_its_own_recipe_and_never_overwritten(
    data: Data, hardened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(hardened)
    monkeypatch.setattr(runs, "fit", None)  # nothing is trained
    assert train(HARDENED, data, str(hardened), progress=False).id == load_run(hardened).id
    others: list[tuple[Recipe, str | None, str]] = [
        (PLAIN, None, "shared_blocks is 3, not None"),
        (HARDENED, "mine", r"name is Defend\+\+ \+ noise 0.2, not mine"),
    ]
    for recipe, name, difference in others:
        with pytest.raises(FileExistsError, match=rf"a finished run of another recipe \({difference}\)"):
            train(recipe, data, hardened, name=name, progress=False)
    assert contents(hardened) == before


def test_other_folders_are_left_alone(data: Data, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="exists and is no run folder"):
        train(PLAIN, data, tmp_path / "mine", progress=False)
    assert list(contents(tmp_path / "mine")) == ["thesis.tex"]


def test_an_interrupted_run_resumes_with_its_own_recipe_only(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(PLAIN, data, tmp_path / "run", progress=False)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        load_run(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    with pytest.raises(FileExistsError, match=r"unfinished run of another recipe \(shared_blocks is None, not 3\)"):
        train(HARDENED, data, tmp_path / "run", progress=False)
    last.unlink()
    assert train(PLAIN, data, tmp_path / "run", accelerator="cpu", progress=False).recipe == PLAIN


def test_damaged_runs_are_named(hardened: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no run in"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_run(tmp_path)
    heading = json.loads((hardened / "run.json").read_text())
    heading["recipe"]["colour"] = "blue"
    (tmp_path / "run.json").write_text(json.dumps(heading))
    with pytest.raises(ValueError, match=r"not written by this version.*colour"):
        load_run(tmp_path)
    del heading["recipe"]["colour"]
    (tmp_path / "run.json").write_text(json.dumps(heading))
    (tmp_path / "classifier.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_run(tmp_path)


def test_fewer_training_images(data: Data, tmp_path: Path) -> None:
    run = train(dataclasses.replace(PLAIN, training_images=40), data, tmp_path / "r", accelerator="cpu", progress=False)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["training_images"] == 40
    assert run.recipe.training_images == 40


def test_recipes_differ_in_their_hash_and_say_what_they_are() -> None:
    different = [PLAIN, HARDENED, dataclasses.replace(PLAIN, seed=1), dataclasses.replace(PLAIN, noise=0.2)]
    assert len({recipe.hash for recipe in different}) == 4
    assert PLAIN.hash == dataclasses.replace(HARDENED, defence="none", noise=0.0, shared_blocks=None).hash
    assert [str(recipe) for recipe in different] == ["no defence", "Defend++ + noise 0.2", "no defence", "noise 0.2"]


def test_a_recipe_tells_the_dropout_of_vgg16s_head() -> None:
    recipe = dataclasses.replace(PLAIN, network="vgg16", dropout=0.2)
    head = build_classifier(recipe, 4, (1, 28, 28)).get_submodule("head")
    assert [module.p for module in head.children() if isinstance(module, nn.Dropout)] == [0.2, 0.2]
    assert recipe.hash != dataclasses.replace(recipe, dropout=0.5).hash
    with pytest.raises(ValueError, match="resnet18 does not have the option dropout"):
        build_classifier(dataclasses.replace(recipe, network="resnet18"), 4, (1, 28, 28))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0, or 0 for a pretrained network that is left as it is, not 0"),
        ({"training_images": 0}, "training_images must be at least 2, not 0"),
        ({"noise": -1.0}, r"noise must be at least 0, not -1\.0"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, not 1\.0"),
        ({"clip_norm": 0.0}, r"clip_norm must be above 0, not 0\.0"),
        ({"learning": "alternating", "defence": "none"}, "alternating learning needs a decoder"),
        ({"defence": "adversarial", "noise": 0.1}, r"the defence \"adversarial\" takes no noise, but noise is 0\.1"),
        (
            {"defence": "adversarial", "consistency": 1.0},
            'consistency goes with the defence "none" or "defend" or "binarise", not with "adversarial"',
        ),
        (
            {"defence": "binarise", "curvature": 1.0},
            'curvature goes with the defence "none" or "defend", not with "bin',
        ),
        ({"defence": "adversarial", "clean_weight": 1.5}, r"clean_weight must be in \[0, 1\], not 1\.5"),
        ({"defence": "adversarial", "attack": "fgsm", "attack_steps": 3}, "only pgd and ddn have them, not 3"),
        ({"defence": "none", "decoder": "hourglass"}, 'decoder goes with the defence "defend", not with "none"'),
        ({"defence": "defend", "attack": "fgsm"}, 'attack goes with the defence "adversarial", not with "defend"'),
    ],
)
def test_recipes_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **settings).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["pyramid", "hourglass", "hourglass-sc", "hourglass-sa"])
@pytest.mark.parametrize("targets", ["low-pass", "linear"])
def test_every_decoder_and_target_takes_a_step(data: Data, decoder: str, targets: str) -> None:
    recipe = dataclasses.replace(HARDENED, decoder=decoder, targets=targets)  # type: ignore[arg-type]
    classifier = build_classifier(recipe, 4, (1, 28, 28))
    objective = build_objective(recipe, classifier, (1, 28, 28))
    assert isinstance(objective, Defend)
    images, labels = data.train.batch(range(8))
    torch.stack([*objective(classifier, images, labels).values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in [*classifier.parameters(), *objective.parameters()])


@pytest.mark.parametrize(("attack", "clean_weight"), [("fgsm", 0.5), ("pgd", 0.0), ("ddn", 0.0)])
def test_adversarial_training_resumes_like_any_other(
    data: Data, tmp_path: Path, attack: str, clean_weight: float
) -> None:
    recipe = dataclasses.replace(
        PLAIN,
        defence="adversarial",
        attack=attack,  # type: ignore[arg-type]
        clean_weight=clean_weight,
        epochs=1,
    )
    if attack != "fgsm":
        recipe = dataclasses.replace(recipe, attack_steps=2)
    runs = [train(recipe, data, tmp_path / str(i), accelerator="cpu", progress=False) for i in range(2)]
    assert runs[0].id == runs[1].id
    assert runs[0].name == f"Adv. {attack.upper()}"
    assert runs[0].objective is None
    classifier = build_classifier(recipe, 4, (1, 28, 28))
    terms = build_objective(recipe, classifier, (1, 28, 28))(classifier, *data.train.batch(range(8)))
    assert set(terms) == ({"adversarial", "classification"} if clean_weight else {"adversarial"})


@pytest.mark.parametrize(("network", "width"), [("resnet50", 4), ("vgg16", 4), ("timm/convnext_atto", 64)])
def test_other_networks_are_hardened_too(data: Data, network: str, width: int) -> None:
    recipe = dataclasses.replace(HARDENED, network=network, width=width, shared_blocks=2)
    classifier = build_classifier(recipe, 4, (1, 32, 32) if "convnext" in network else (1, 28, 28))
    objective = build_objective(recipe, classifier, (1, 32, 32) if "convnext" in network else (1, 28, 28))
    images = torch.rand(4, 1, 32, 32) if "convnext" in network else torch.rand(4, 1, 28, 28)
    assert isinstance(classifier, nn.Module)
    terms = objective(classifier, images, torch.tensor([0, 1, 2, 3]))
    assert {"classification", "reconstruction_0"} <= set(terms)


def test_a_fixed_set_is_the_clean_images_and_those_attacked_once(data: Data, hardened: Path, tmp_path: Path) -> None:
    """Against the attack run by hand on the whole training set."""
    recipe = dataclasses.replace(
        PLAIN, defence="adversarial", attack="fgsm", attack_epsilon=0.1, attacked_run=str(hardened)
    )
    seen: list[tuple[object, Images]] = []

    def fit(_: nn.Module, objective: object, images: Images, *__: object, **___: object) -> None:
        seen.append((objective, images))
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "fit", fit)
        with pytest.raises(InterruptedError):
            train(recipe, data, tmp_path / "fixed", progress=False)
    (objective, images), n = seen[0], len(data.train)
    assert objective is cross_entropy
    assert len(images) == 2 * n
    clean, labels = data.train.batch(range(n))
    attacked = fgsm(load_run(hardened).classifier, clean, labels, epsilon=0.1).images
    pixels, seen_labels = images.batch(range(2 * n))
    assert torch.equal(pixels[:n], clean)
    assert torch.equal(pixels[n:], (attacked * 255).round() / 255)
    assert not torch.equal(pixels[n:], clean)
    assert torch.equal(seen_labels, labels.repeat(2))


def test_a_purifier_is_trained_in_front_of_a_classifier_that_stays(data: Data, tmp_path: Path) -> None:
    plain = train(PLAIN, data, tmp_path / "plain", accelerator="cpu", progress=False)
    recipe = dataclasses.replace(
        PLAIN, defence="comdefend", start="plain", optimizer="adam", learning_rate=1e-3, weight_decay=0.0
    )
    made = train(recipe, data, tmp_path / "purified", accelerator="cpu", progress=False)
    read = load_run(tmp_path / "purified")
    for run in (made, read):
        assert isinstance(run.classifier, Purified)
        assert fingerprint(run.classifier.classifier.requires_grad_(True)) == plain.id
    assert read.id == made.id
    fresh = build_classifier(recipe, 4, (1, 28, 28), tmp_path / "plain")
    assert isinstance(fresh, Purified)
    assert fingerprint(fresh) != made.id
    assert str(recipe) == "ComDefend"


def test_a_network_may_be_left_as_published(
    data: Data, hardened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 epochs: the weights are those of the library, and the accuracy is theirs."""
    published = load_run(hardened).classifier
    monkeypatch.setattr(networks, "build", lambda *_, **__: published)
    recipe = dataclasses.replace(PLAIN, network="timm/some", width=64, pretrained=True, epochs=0)
    run = train(recipe, data, tmp_path / "run", progress=False)
    assert (run.id, run.result.epochs) == (fingerprint(published), 0)
    images, labels = data.validation.batch(range(len(data.validation)))
    with torch.inference_mode():
        assert run.result.validation_accuracy == float((published(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"epochs": 0}, "epochs must be above 0, or 0 for a pretrained network"),
        ({"attacked_run": "x"}, 'needs the defence "adversarial" and no clean_weight'),
        ({"defence": "comdefend"}, "goes in front of the classifier of a run, start"),
        ({"start": "nowhere"}, "nowhere is no folder of a finished run"),
    ],
)
def test_what_cannot_be_trained_is_refused(data: Data, tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        train(dataclasses.replace(PLAIN, **change), data, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [("defence", "x"), ("attack", "FGSM"), ("keep", "Last")])
def test_a_misspelled_choice_is_refused(name: str, value: str) -> None:
    recipe = Recipe()
    object.__setattr__(recipe, name, value)  # under test types are checked when it is made
    with pytest.raises(ValueError, match=rf"{name} must be one of .*, not '{value}'"):
        recipe.check()


def test_a_recipe_with_every_term_is_trained_and_read(data: Data, tmp_path: Path) -> None:
    steady = {"consistency": 5.0, "bottleneck": 0.1, "gradient_penalty": 0.1, "curvature": 0.1, "coarse_noise": 0.2}
    recipe = dataclasses.replace(HARDENED, **steady)  # type: ignore[arg-type]
    made = train(recipe, data, tmp_path / "run", accelerator="cpu", progress=False)
    read = load_run(tmp_path / "run")
    assert (read.id, read.recipe) == (made.id, recipe)
    assert isinstance(read.objective, Defend)
    images, labels = data.test.batch(range(4))
    classifier = build_classifier(recipe, 4, (1, 28, 28))
    terms = build_objective(recipe, classifier, (1, 28, 28))(classifier, images, labels)
    named = {"consistency", "bottleneck", "gradient_penalty", "curvature_penalty"}
    assert set(terms) == {"classification", "reconstruction_0", "reconstruction_1", "reconstruction_2", *named}
    assert "consistency 5" in str(recipe)


def test_noise_comes_before_a_threshold(data: Data) -> None:
    """So that it flips pixels: of those at 0 as many as there are normal numbers above 0.5 / 0.4."""
    recipe = dataclasses.replace(PLAIN, defence="binarise", noise=0.4, consistency=5.0)
    recipe.check()
    assert str(recipe) == "0/1 images + noise 0.4 + consistency 5"
    purified = build_classifier(recipe, 4, (1, 28, 28))
    assert isinstance(purified, Purified)
    seen: list[torch.Tensor] = []
    purified.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    _, labels = data.train.batch(range(16))
    terms = build_objective(recipe, purified, (1, 28, 28))(purified, torch.zeros(16, 1, 28, 28), labels)
    assert set(terms) == {"classification", "consistency"}
    (bits,) = seen
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert bits.shape == (32, 1, 28, 28)
    assert abs(float(bits.mean()) - norm.sf(0.5 / 0.4)) < 0.01


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"consistency": -1.0}, "consistency must be at least 0, not -1"),
        ({"consistency": 1.0, "noise": 0.0}, "compare noisy copies: noise must be above 0"),
        ({"bottleneck": 1.0, "defence": "none"}, 'bottleneck goes with the defence "defend", not with "none"'),
        ({"curvature": 1.0, "defence": "adversarial", "noise": 0.0}, 'goes with the defence "none" or "defend", not'),
        ({"coarse_noise": 2.0}, "coarse_noise must be in"),
    ],
)
def test_terms_that_cannot_go_together_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(HARDENED, **change).check()


def test_building_leaves_the_random_numbers_of_graphics_cards_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def reseed(seed: int) -> None:
        raise AssertionError(f"reseeded with {seed}")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseed)
    recipe = Recipe(width=4, defence="defend")
    state = torch.get_rng_state()
    classifier = build_classifier(recipe, 10, (1, 28, 28))
    build_objective(recipe, classifier, (1, 28, 28))
    assert torch.equal(torch.get_rng_state(), state)
