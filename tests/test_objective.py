import copy

import pytest
import torch
from examples import small_network
from torch import nn

from defendpp import threats
from defendpp.decoder import AutoEncoder, PyramidDecoder
from defendpp.encoder import PrivateBlocks, find_blocks
from defendpp.frequency import linear, low_pass
from defendpp.objective import (
    Defend,
    Together,
    adversarial_cross_entropy,
    cross_entropy,
    perturb,
    reconstruction_terms,
)
from defendpp.objective import defend as build_for
from defendpp.stability import add_noise, consistency, gradient_penalty, movement

SHAPE = (1, 28, 28)


def defend(classifier: nn.Module, *, shared: int = 3, **settings) -> Defend:  # type: ignore[no-untyped-def]
    blocks = find_blocks(classifier, SHAPE)
    private = PrivateBlocks(classifier, blocks, shared, SHAPE)
    auto_encoder = AutoEncoder(private, blocks[shared - 1], PyramidDecoder(blocks, SHAPE))
    return Defend(auto_encoder, blocks[:shared], **{"weights": (1, 0.01, 0.01), **settings})


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, *SHAPE, generator=generator), torch.randint(10, (6,), generator=generator)


def test_equation_3_by_hand() -> None:
    rebuilt = [torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[5.0]]]])]
    target = [torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[[[2.0]]]])]
    terms = reconstruction_terms(rebuilt, target, (0.8, 0.01))
    assert terms["reconstruction_0"].item() == pytest.approx(0.8 * (1 + 4) / 2)
    assert terms["reconstruction_1"].item() == pytest.approx(0.01 * 9)
    assert list(reconstruction_terms(rebuilt, target, (1, 0))) == ["reconstruction_0"]


def test_weight_0_is_plain_cross_entropy_to_the_bit(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain, hardened = small_network(), small_network()
    cross_entropy(plain, *batch)["classification"].backward()
    terms = defend(hardened, weights=(0, 0, 0))(hardened, *batch)
    assert list(terms) == ["classification"]
    terms["classification"].backward()
    for ours, theirs in zip(hardened.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


def test_terms_are_the_losses_of_the_rebuilt_images(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    classifier = small_network()
    objective = defend(classifier).eval()
    classifier.eval()
    images, labels = batch
    terms = objective(classifier, images, labels)
    logits, rebuilt = objective.classify_and_rebuild(classifier, images)
    assert torch.equal(logits, classifier(images))
    assert terms["classification"].item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    for m, (image, target, weight) in enumerate(zip(rebuilt, low_pass(images, 3), (1, 0.01, 0.01), strict=True)):
        assert terms[f"reconstruction_{m}"].item() == pytest.approx(weight * (image - target).square().mean().item())


def test_reconstruction_trains_the_shared_blocks_and_not_the_head(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    classifier = small_network()
    terms = defend(classifier, shared=2)(classifier, *batch)
    torch.stack([term for name, term in terms.items() if name.startswith("reconstruction")]).sum().backward()
    trained = {name for name, parameter in classifier.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in classifier.named_parameters() if name[0] in "01"}


def test_noise_is_on_the_input_and_the_targets_stay_clean(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    seen: list[torch.Tensor] = []
    asked: list[torch.Tensor] = []

    def targets(clean: torch.Tensor, scales: int) -> list[torch.Tensor]:
        asked.append(clean)
        return low_pass(clean, scales)

    classifier = small_network()
    objective = defend(classifier, noise=0.5, targets=targets)
    classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    torch.manual_seed(3)
    objective(classifier, images, labels)
    torch.manual_seed(3)
    torch.testing.assert_close(seen[0], images + 0.5 * torch.randn_like(images))
    assert torch.equal(asked[0], images)


def test_linear_targets_give_other_losses_at_the_smaller_scales_only(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    classifier = small_network()
    objective = defend(classifier)
    interpolated = defend(classifier, targets=linear)
    interpolated.load_state_dict(objective.state_dict())
    a, b = (copy.deepcopy(o).eval()(classifier.eval(), *batch) for o in (objective, interpolated))
    assert torch.equal(a["reconstruction_0"], b["reconstruction_0"])
    assert not torch.equal(a["reconstruction_1"], b["reconstruction_1"])


def test_noise_has_the_asked_deviation_and_is_clipped_only_on_request() -> None:
    torch.manual_seed(0)
    gray = torch.full((1, 1, 200, 200), 0.5)
    noisy = add_noise(gray, 0.3)
    assert (noisy - gray).std().item() == pytest.approx(0.3, rel=0.02)
    assert noisy.min() < 0
    assert add_noise(gray, 0.3, clip=True).min() == 0
    assert add_noise(gray, 0) is gray
    with pytest.raises(ValueError, match=r"at least 0, not -0\.1"):
        add_noise(gray, -0.1)


def test_adversarial_objective_mixes_clean_and_attacked(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    classifier = small_network().eval()
    images, labels = batch
    attack = threats.fgsm(0.1)
    attacked = attack.run(classifier, images, labels).images
    terms = adversarial_cross_entropy(classifier, images, labels, attack=attack, clean_weight=0.25)
    clean, harmed = (nn.functional.cross_entropy(classifier(x), labels).item() for x in (images, attacked))
    assert harmed > clean
    assert terms["classification"].item() == pytest.approx(0.25 * clean)
    assert terms["adversarial"].item() == pytest.approx(0.75 * harmed)
    with pytest.raises(ValueError, match="not 2"):
        adversarial_cross_entropy(classifier, images, labels, attack=attack, clean_weight=2)


def test_training_attacks_draw_from_torch_s_generator_and_stay_within_their_norm(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    classifier = small_network()
    images, labels = batch
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(perturb(classifier, images, labels, threats.pgd(0.1, steps=2)))
    assert made[0].equal(made[1])
    assert not made[0].equal(made[2])
    assert classifier.training
    bound = (made[0] - images).flatten(1).norm(dim=1).median().item()
    torch.manual_seed(0)
    bounded = perturb(classifier, images, labels, threats.pgd(0.1, steps=2), max_norm=bound)
    norms = (made[0] - images).flatten(1).norm(dim=1)
    assert norms.min() < bound < norms.max()
    torch.testing.assert_close((bounded - images).flatten(1).norm(dim=1), norms.clamp_max(bound))


def test_an_objective_serves_only_the_classifier_it_was_built_for(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    classifier = small_network()
    objective = build_for(classifier, SHAPE)
    objective(classifier, *batch)
    with pytest.raises(ValueError, match="was built for another classifier"):
        objective(small_network(), *batch)


@pytest.mark.parametrize("weights", [(), (1, -0.1, 0), (float("nan"), 0, 0)])
def test_bad_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights of the scales must be at least 0"):
        defend(small_network(), weights=weights)


def test_agreement_of_two_noisy_copies(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    classifier = small_network().eval()
    torch.manual_seed(1)
    terms = cross_entropy(classifier, images, labels, noise=0.3, agreement=5)
    torch.manual_seed(1)
    first, second = (classifier(add_noise(images, 0.3)) for _ in range(2))
    assert terms["consistency"].item() == pytest.approx(consistency([first, second], 5).item(), rel=1e-5)
    losses = [nn.functional.cross_entropy(each, labels).item() for each in (first, second)]
    assert terms["classification"].item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_two_copies_are_rebuilt_to_the_same_clean_image_and_their_bottlenecks_compared(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    images, labels = batch
    classifier = small_network().eval()
    objective = defend(classifier, noise=0.3, agreement=5, bottleneck=2).eval()
    torch.manual_seed(1)
    terms = objective(classifier, images, labels)
    torch.manual_seed(1)
    copies = [add_noise(images, 0.3) for _ in range(2)]
    logits, rebuilt = zip(*[objective.classify_and_rebuild(classifier, each) for each in copies], strict=True)
    assert terms["consistency"].item() == pytest.approx(consistency(logits, 5).item(), rel=1e-5)
    for m, weight in enumerate((1, 0.01, 0.01)):
        errors = [(each[m] - low_pass(images, 3)[m]).square().mean().item() for each in rebuilt]
        assert terms[f"reconstruction_{m}"].item() == pytest.approx(weight * sum(errors) / 2, rel=1e-5)
    maps = [classifier[:3](each) for each in copies]
    assert terms["bottleneck"].item() == pytest.approx(2 * movement(maps).item(), rel=1e-5)
    assert "agreement=5" in repr(objective)


def test_objectives_together_have_the_terms_of_all(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    classifier = small_network().eval()
    hardened = defend(classifier).eval()

    def steady(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"gradient": gradient_penalty(classifier, images, labels)}

    both = Together(hardened, steady)
    terms = both(classifier, images, labels)
    assert set(terms) == {*hardened(classifier, images, labels), "gradient"}
    assert set(both.parameters()) == set(hardened.parameters())
    with pytest.raises(ValueError, match="two objectives have a term of the name 'gradient'"):
        Together(steady, steady)(classifier, images, labels)
