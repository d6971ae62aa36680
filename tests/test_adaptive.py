"""Attacks through the decoder: they are PGD plus a term, stay in the ball, and move what they are to move."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from defendpp import attacks, networks, threats
from defendpp.adaptive import DRAWS, Raised, adapted, against_decoder, stand_ins
from defendpp.encoder import tap
from defendpp.objective import Defend, defend
from defendpp.purifier import Averaged, Binarise, ComDefend, Purified

Model = tuple[nn.Module, Defend]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    classifier = networks.build("resnet18", classes=10, channels=1, image_size=28, width=4, stem="halve")
    objective = defend(classifier, (1, 28, 28), shared_blocks=2)
    terms = objective(classifier, torch.rand(16, 1, 28, 28), torch.arange(16) % 10)  # statistics of batch normalisation
    assert terms
    return classifier.eval(), objective.eval()


@pytest.fixture
def batch(model: Model) -> tuple[Tensor, Tensor]:
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, model[0](images).argmax(1)


def bottleneck(model: Model, images: Tensor) -> Tensor:
    classifier, objective = model
    with torch.no_grad(), tap(classifier, objective.shared) as maps:
        classifier(images)
    return maps[objective.shared[-1].name].flatten(1)


def rebuilt(model: Model, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model[1].classify_and_rebuild(model[0], images)[1][0].flatten(1)


def moved(part: Tensor, usual: Tensor) -> Tensor:
    return (part - usual).square().sum(1) / usual.square().sum(1)


@pytest.mark.parametrize("raised", ["bottleneck", "reconstruction"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_weight_it_is_pgd_on_the_margin(model: Model, batch: tuple[Tensor, Tensor], raised, norm) -> None:  # type: ignore[no-untyped-def]
    attack = against_decoder([model[1]], 0.05, raised=raised, weight=0.0, steps=5, restarts=2, norm=norm)
    made = attack.run(model[0], *batch)
    usual = attacks.pgd(
        model[0], *batch, epsilon=0.05, step_size=0.5 * 0.05, steps=5, restarts=2, norm=norm, loss="margin"
    )
    torch.testing.assert_close(made.images, usual.images)
    assert made.success.equal(usual.success)


def test_a_weight_moves_that_part_further(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    images, _ = batch
    parts: dict[Raised, Callable[[Model, Tensor], Tensor]] = {"bottleneck": bottleneck, "reconstruction": rebuilt}
    for raised, part in parts.items():
        attack = partial(against_decoder, [model[1]], 0.1, raised=raised, steps=20)
        far, near = (attack(weight=weight).run(model[0], *batch).images for weight in (1e4, 0.0))
        assert (far - images).abs().max() <= 0.1 + 1e-6
        usual = part(model, images)
        assert (moved(part(model, far), usual) > 1.2 * moved(part(model, near), usual)).all()


def test_the_classifier_is_left_as_found_and_may_be_a_prepared_one(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    classifier, objective = model
    classifier.train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    attack = against_decoder([objective], 0.1, steps=3)
    plain = attack.run(classifier, *batch)
    prepared = attack.run(attacks.prepare(classifier, batch[0]), *batch)
    assert plain.images.equal(prepared.images)
    assert classifier.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert all(value.equal(before[name]) for name, value in classifier.state_dict().items())


def test_a_classifier_without_a_decoder_meets_pgd(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    classifier, objective = model
    alone = copy.deepcopy(classifier)
    made = against_decoder([objective], 0.1, weight=1e4, steps=5).run(alone, *batch).images
    plain = attacks.pgd(alone, *batch, epsilon=0.1, step_size=0.05, steps=5, loss="margin").images
    assert made.equal(plain)


def test_its_name_and_settings_say_what_it_is(model: Model) -> None:
    attack = against_decoder([model[1]], 0.2, raised="reconstruction", weight=10.0)
    assert str(attack) == "adaptive_reconstruction 0.2"
    assert attack.settings["loss"] == "margin + 10 reconstruction"


@pytest.mark.parametrize("attack", [threats.bim(0.2, steps=10), threats.ddn(steps=20)], ids=str)
def test_behind_a_purifier_the_worst_of_both_gradients_counts(
    model: Model, batch: tuple[Tensor, Tensor], attack: threats.Attack
) -> None:
    purified, (images, _) = Purified(Binarise(), model[0]), batch
    with torch.no_grad():
        labels = purified(images).argmax(1)
    through = adapted(attack, purified)
    assert through.settings == {**attack.settings, "gradient": "straight-through, identity"}
    assert adapted(through, purified) is through
    found = through.run(purified, images, labels)
    each = [
        attack.run(attacks.prepare(purified.attacked_through(gradient), images), images, labels)
        for gradient in ("straight-through", "identity")
    ]
    assert found.success.any()
    assert not threats.bim(0.2).run(purified, images, labels).success.any()  # there is no gradient to follow
    assert torch.equal(found.success, each[0].success | each[1].success)
    assert torch.equal(found.success, purified(found.images).argmax(1) != labels)
    assert torch.equal(found.queries, each[0].queries + each[1].queries)
    size = {"linf": torch.inf, "l2": 2}[attack.norm]
    lengths = [
        torch.linalg.vector_norm((made.images - images).flatten(1), size, dim=1).masked_fill(~made.success, torch.inf)
        for made in (found, *each)
    ]
    torch.testing.assert_close(lengths[0], torch.minimum(*lengths[1:]))


def test_a_purifier_that_draws_noise_is_averaged(model: Model) -> None:
    purifier = ComDefend(1, width=0.1, test_noise=1.0)
    for view, gradient in zip(stand_ins(Purified(purifier, model[0])), ("straight-through", "identity"), strict=True):
        assert isinstance(view, Averaged)
        assert isinstance(view.model, Purified)
        assert (view.draws, view.model.gradient) == (DRAWS, gradient)
    told = adapted(threats.fgsm(0.1), Purified(purifier, model[0])).settings["gradient"]
    assert told == "straight-through, identity, 10 draws"


@pytest.mark.parametrize(("epsilon", "steps"), [(8.0, 5), (-1.0, 5), (float("nan"), 5), (0.1, 0)])
def test_budgets_and_steps_are_checked(epsilon: float, steps: int) -> None:
    with pytest.raises(ValueError, match=r"epsilon|needs at least 1 of steps"):
        against_decoder([], epsilon, steps=steps)


def test_other_models_and_chosen_gradients_are_attacked_as_they_are(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    chosen = Purified(Binarise(), model[0]).attacked_through("identity")
    attack = threats.bim(0.05, steps=3)
    for each in (model[0], chosen, attacks.prepare(chosen, batch[0])):
        assert stand_ins(each) == [each]
        assert adapted(attack, each) is attack
    square = threats.square(0.1)
    assert adapted(square, Purified(Binarise(), model[0])) is square  # it follows no gradient
