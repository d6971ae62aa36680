"""Each check against a model, or an attack, that was made to trip it and no other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defendpp import attacks
from defendpp.adaptive import stand_ins
from defendpp.attacks import AttackResult
from defendpp.binarisation import find_planted
from defendpp.checks import BY_GRADIENT, Check, Complaint, NothingToJudgeBy, better_than_chance, check
from defendpp.purifier import Binarise, Purified

EPSILON = 0.1
SIDE = 6


class Along(nn.Module):
    """Class 1 where a function of the image's place along a fixed pattern of +1 and -1 is positive.

    An image moved by epsilon along the signs of `pattern` is `epsilon` further along.
    """

    def __init__(self, pattern: Tensor, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.place = nn.Linear(SIDE * SIDE, 1, bias=False)
        self.rule = rule
        self.origin = 0.5 * float(pattern.mean())  # the place of a gray image
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.place.weight.copy_(pattern.flatten()[None] / pattern.numel())
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rule(self.place(images.flatten(1)) - self.origin))
        return logits


PATTERN = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).sign()
IMAGES = 0.5 + 0.02 * torch.randn(50, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
IMAGES = IMAGES - PATTERN * ((IMAGES - 0.5) * PATTERN).mean((1, 2, 3), keepdim=True)  # all at place 0 along the pattern
LABELS = torch.zeros(50, dtype=torch.long)


def honest(threshold: float = 0.05) -> Along:
    return Along(PATTERN, lambda place: 20 * (place - threshold)).eval()


def verdicts(model: nn.Module, **settings: Any) -> dict[str, str]:
    return {each.name: each.verdict for each in check(model, IMAGES, LABELS, epsilon=EPSILON, **settings)}


def failed(model: nn.Module, **settings: Any) -> list[Check]:
    return [each for each in check(model, IMAGES, LABELS, epsilon=EPSILON, **settings) if each.verdict == "failed"]


def test_an_honest_model_passes_every_check() -> None:
    labels = torch.arange(50) % 2
    images = IMAGES + 0.1 * PATTERN * labels.view(-1, 1, 1, 1)  # as far beyond the boundary as the others before it
    found = {
        each.name: each.verdict for each in check(honest(), images, labels, epsilon=EPSILON, others=[honest(0.04)])
    }
    assert set(found.values()) == {"passed"}, found
    assert len(found) == 5 + len(BY_GRADIENT)


def test_probabilities_instead_of_logits() -> None:
    (only,) = failed(nn.Sequential(honest(), nn.Softmax(dim=1)))
    assert only.name == "logits"
    assert "give the attack logits" in only.detail


def test_a_module_left_in_training_mode() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.0), honest())
    (only,) = failed(model)
    assert (only.name, model[0].training) == ("evaluation mode", True)
    assert "the first 0" in only.detail


def test_a_model_that_draws_random_numbers() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = honest()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(images)
            return logits + 1e-2 * torch.randn(logits.shape)

    (only,) = failed(Random())
    assert only.name == "deterministic"


class Rounded(nn.Module):
    """A threshold in front: no gradient at all."""

    def __init__(self) -> None:
        super().__init__()
        self.model = honest()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images * 64).round() / 64)
        return logits


def test_no_gradients() -> None:
    found = verdicts(Rounded())
    assert [name for name, verdict in found.items() if verdict == "failed"] == ["gradients"]
    assert {found[name] for name in BY_GRADIENT} == {"not judged"}


def test_a_model_that_nothing_can_change() -> None:
    """It adds to class 0 what no image can make up for, so that even any image at all does not win."""
    (only,) = failed(Along(PATTERN, lambda place: 20 * (place - 1000)).eval())
    assert only.name == "unbounded attack wins"


def hill(top: float) -> Callable[[Tensor], Tensor]:
    """The loss has a hill at `top` on which short steps stay.

    From 0.05 beyond it on the loss rises outwards: to class 1 from place 0.09 on, which is within reach, and from -0.2
    down, which is not.
    """

    def rule(place: Tensor) -> Tensor:
        off = place - top
        right = -0.3 + 0.3 * (off - 0.05) / (0.09 - top - 0.05)
        left = -0.3 - 0.3 * (off + 0.05) / (0.2 + top - 0.05)
        return torch.where(off > 0.05, right, torch.where(off < -0.05, left, -0.2 - 2 * off.abs()))

    return rule


def peak(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Class 1 between `low` and `high`, to which the loss rises from both sides, and from 0.3 on."""

    def rule(place: Tensor) -> Tensor:
        near = 20 * ((high - low) / 2 - (place - (low + high) / 2).abs())
        return torch.where(place < 0.099, near, place - 0.3)

    return rule


def test_a_hill_that_one_long_step_jumps_and_short_steps_do_not() -> None:
    (only,) = failed(Along(PATTERN, hill(0.005)).eval())
    assert only.name == "steps beat one step"
    assert "one step breaks 50 of 50 images that the attack does not" in only.detail


def test_a_hill_on_which_only_the_networks_own_gradients_end() -> None:
    (only,) = failed(Along(PATTERN, hill(-0.005)).eval(), others=[honest()])
    assert only.name == "own gradients beat transfer"


def test_a_hill_from_which_stripes_are_far_enough_away() -> None:
    """The pattern is the same everywhere, which Square's first stripes are likely to hit."""
    images = IMAGES - (IMAGES - 0.5).mean((1, 2, 3), keepdim=True)
    model = Along(torch.ones(SIDE, SIDE), hill(-0.005)).eval()
    found = [each.name for each in check(model, images, LABELS, epsilon=EPSILON) if each.verdict == "failed"]
    assert found == ["own gradients beat Square"]


def test_an_attack_whose_steps_are_too_short() -> None:
    def slow(model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> AttackResult:
        return attacks.pgd(model, images, labels, step_size=settings["epsilon"] / 100, loss="margin", **settings)

    (only,) = failed(Along(PATTERN, peak(0.055, 0.075)).eval(), attack=slow, queries=20)
    assert only.name == "converged"


def straight(model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> AttackResult:
    """BIM on the margin."""
    return attacks.bim(model, images, labels, epsilon=settings["epsilon"], steps=settings["steps"], loss="margin")


def test_a_larger_budget_whose_longer_steps_pass_over_the_goal() -> None:
    (only,) = failed(Along(PATTERN, peak(0.045, 0.055)).eval(), attack=straight)
    assert only.name == "monotone"


def test_an_attack_that_forgets_what_it_found() -> None:
    """It returns its last iterate, which has gone past the adversarial one."""

    def forgetful(model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> AttackResult:
        epsilon, adversarial = settings["epsilon"], images
        for _ in range(settings["steps"]):
            adversarial = adversarial.detach().requires_grad_()
            logits = model(adversarial)
            (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), adversarial)
            moved = adversarial + epsilon / 10 * gradient.sign()
            adversarial = moved.clamp(images - epsilon, images + epsilon).clamp(0, 1)
        success = model(adversarial.detach()).argmax(1) != labels
        return AttackResult(adversarial.detach(), success, torch.full_like(labels, settings["steps"]))

    (only,) = failed(Along(PATTERN, peak(0.045, 0.054)).eval(), attack=forgetful, queries=5)
    assert only.name == "keeps its successes"


class Noisy(torch.autograd.Function):
    """The identity, whose gradient points only a little more often to the right side than to the wrong one."""

    generator = torch.Generator()

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        noise = torch.randn(gradient.shape, generator=Noisy.generator)
        return gradient + noise * gradient.abs().mean() / 0.15


def test_gradients_too_poor_to_find_what_is_there() -> None:
    """Nothing is adversarial within the budget, so that no other attack does better; one that was planted is missed."""

    class Poor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(SIDE * SIDE, 2)
            with torch.no_grad():
                away = 20 * PATTERN.flatten() / PATTERN.numel()
                self.head.weight.copy_(torch.stack([-away, away]))
                offset = 20 * (0.101 + 0.5 * float(PATTERN.mean()))
                self.head.bias.copy_(torch.tensor([offset, -offset]))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(Noisy.apply(images).flatten(1))
            return logits

    Noisy.generator.manual_seed(0)
    (only,) = failed(Poor().eval(), others=[honest()])
    assert only.name == "finds what was planted"


@pytest.mark.parametrize("as_prepared", [False, True])
def test_what_is_planted_is_judged_by_the_changed_layer_alone(as_prepared: bool) -> None:
    model = honest()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([-9.0, 9.0]))  # of itself it says 1, and the label of the test is 0
    given = attacks.prepare(model, IMAGES[:4]) if as_prepared else model

    def run(found: nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int) -> AttackResult:
        return attacks.pgd(found, images, labels, epsilon=0.0, steps=1)

    found, made = find_planted(run, given, IMAGES, epsilon=EPSILON, norm="linf", steps=1)
    assert made > 0
    assert found == 0


def test_a_prepared_models_own_mode_is_checked() -> None:
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.5), honest())
    assert "evaluation mode" in [each.name for each in failed(attacks.prepare(model.train(), IMAGES[:4]))]


@pytest.mark.parametrize("right", [0, 25])
def test_a_model_no_better_than_chance(right: int) -> None:
    labels = (torch.arange(50) >= right).long()
    found = check(honest(), IMAGES, labels, epsilon=EPSILON, others=[honest(0.04)])
    (only,) = [each for each in found if each.verdict == "failed"]
    assert only.name == "better than chance"
    assert f"{100 * right / 50:.1f} %" in only.detail
    assert {each.verdict for each in found if each.name in BY_GRADIENT} == {"passed" if right else "not judged"}


@pytest.mark.parametrize(("n", "right"), [(3, 3), (50, 28)])
def test_few_images_do_not_tell_a_model_from_chance(n: int, right: int) -> None:
    with pytest.raises(NothingToJudgeBy, match="too few to tell it from a guess, "):
        better_than_chance(torch.arange(n) < right, torch.arange(n) % 2, 2)


def test_images_of_one_class_tell_nothing_of_a_model() -> None:
    """One that always names this class gets all of them right."""
    found = {each.name: each for each in check(honest(), IMAGES, torch.zeros(len(IMAGES)).long(), epsilon=EPSILON)}
    assert found["better than chance"].verdict == "not judged"
    assert f"all {len(IMAGES)} images are of class 0" in found["better than chance"].detail


def test_a_model_that_names_the_commonest_class_is_no_better_than_chance() -> None:
    correct, labels = torch.arange(50) < 40, (torch.arange(50) >= 40).long()
    with pytest.raises(Complaint, match=r"no better than naming the commonest class, 80\.0 %"):
        better_than_chance(correct, labels, 10)


def test_another_gradient_of_the_same_model_does_better() -> None:
    """A threshold that passes the gradient of its middle step only, and one that passes all: the same logits."""

    class Masked(nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.model, self.gain = honest(), gain

        def forward(self, images: Tensor) -> Tensor:
            turned = images - (1 - self.gain) * (images - images.detach())  # the same, with another gradient
            logits: Tensor = self.model(turned)
            return logits

    assert "the right gradient" not in verdicts(honest())
    assert verdicts(honest(), views=[Masked(1.0)])["the right gradient"] == "passed"
    found = verdicts(Masked(-1.0), views=[Masked(1.0)])
    assert found["the right gradient"] == "failed"


def test_a_model_behind_a_threshold_is_attacked_through_what_stands_in_for_it() -> None:
    behind = Purified(Binarise(0.5), honest())
    assert stand_ins(behind) != [behind]
    found = verdicts(behind)
    assert found["gradients"] == "passed"
    assert "the right gradient" in found
    assert verdicts(behind, views=[])["gradients"] == "failed"  # its own


def test_budgets_near_and_at_the_whole_range_are_checked_too() -> None:
    assert {each.name: each.verdict for each in check(honest(), IMAGES, LABELS, epsilon=0.6)}["monotone"] == "passed"
    found = {each.name: each for each in check(honest(), IMAGES, LABELS, epsilon=1.0)}
    assert found["monotone"].detail == "the budget allows any image"


def test_no_images_are_nothing_to_check() -> None:
    with pytest.raises(ValueError, match="no images to check on"):
        check(honest(), IMAGES[:0], LABELS[:0], epsilon=EPSILON)


def test_what_cannot_be_judged_says_why() -> None:
    found = {each.name: each for each in check(honest(), IMAGES, LABELS, epsilon=0.6, norm="l2")}
    assert found["own gradients beat Square"].verdict == "not judged"
    assert found["own gradients beat transfer"].detail == "no other classifier was given to make images on"
    assert {each.verdict for each in found.values()} == {"passed", "not judged"}


def test_the_model_is_left_as_found() -> None:
    model = honest().train()
    before = [parameter.clone() for parameter in model.parameters()]
    check(model, IMAGES, LABELS, epsilon=EPSILON, others=[honest()])
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
