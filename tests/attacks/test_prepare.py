"""A prepared classifier is the same classifier, faster; the original decides what counts as success."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from defendpp.attacks import AttackResult, Prepared, bim, carlini_wagner, ddn, minimal_pgd, pgd, prepare

Digits = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """With statistics and scales that make folding matter. Not ours: pytest checks ours for tensors, not proxies."""
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.resnet18(num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_logits_are_the_same_and_no_batch_normalisation_is_left(resnet: nn.Module, images: Tensor) -> None:
    prepared = prepare(resnet, images)
    assert prepared.how == "batch normalisation folded, channels last"
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    expected = resnet(images)
    assert (prepared(images) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("fold", [True, False])
def test_the_model_is_left_as_found(resnet: nn.Module, images: Tensor, fold: bool) -> None:
    model = copy.deepcopy(resnet)
    model.get_submodule("layer1").train()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    prepared = prepare(model, images, fold=fold)
    bim(prepared, images, torch.arange(6), epsilon=0.1, steps=2)
    assert prepared.original is model
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    own = {id(parameter) for parameter in model.parameters()}
    assert not any(id(parameter) in own for parameter in prepared.parameters())
    assert prepare(prepared, images) is prepared


def test_attacks_find_the_same(digits: Digits) -> None:
    network, images, labels = digits
    prepared = prepare(network, images)
    assert "folded" in prepared.how
    ours, theirs = (ddn(model, images, labels, steps=30) for model in (prepared, network))
    assert ours.success.equal(theirs.success)
    moved = network(images).argmax(1) == labels
    ratio = (ours.images - images).flatten(1).norm(dim=1) / (theirs.images - images).flatten(1).norm(dim=1)
    assert ratio[moved].median().item() == pytest.approx(1, abs=0.02)


def test_the_original_has_the_last_word(digits: Digits) -> None:
    """A fast copy that is wrong everywhere would claim every success; the original denies it."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) * 0 + torch.arange(10.0)

    network, images, _ = digits
    labels = network(images).argmax(1)
    lying = Prepared(network, Constant(), "planted", channels_last=False)
    result = pgd(lying, images, labels, epsilon=0.0, steps=1)
    assert not result.success.any()
    closest = ddn(lying, images, labels, steps=2, initial_norm=1e-3)
    assert closest.images.equal(images)
    assert not closest.success.any()


def test_what_cannot_be_folded_is_attacked_as_it_is(images: Tensor) -> None:
    class Branching(nn.Module):
        """Control flow on values, which torch.fx cannot trace."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 32 * 32, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x.flatten(1))
            return logits if logits.sum() > 0 else 2 * logits

    model = Branching()
    prepared = prepare(model, images)
    assert prepared.how == "not folded, channels last"
    assert torch.equal(prepared(images), model(images))


def test_a_copy_with_other_logits_is_not_used(images: Tensor) -> None:
    """Statistics of the batch, not running ones: folding them would be another network."""

    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 32 * 32, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x.flatten(1)) + torch.rand(10)
            return logits

    assert prepare(Restless(), images).how == "not folded, channels last"
    untracked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    prepared = prepare(untracked.eval(), images)
    assert any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    torch.testing.assert_close(prepared(images), untracked(images))


def test_vectors_have_no_layout_to_change() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
    prepared = prepare(model, torch.rand(3, 5))
    assert prepared.how == "batch normalisation folded"
    assert bim(prepared, torch.rand(3, 5), torch.arange(3), epsilon=0.1, steps=2).images.shape == (3, 5)


class Rash(nn.Module):
    """Right in float32; under autocast it sees the boundary wherever two logits are `within` some distance."""

    def __init__(self, network: nn.Module, within: float) -> None:
        super().__init__()
        self.network = network
        self.within = within

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            logits: Tensor = self.network(x)
        if torch.is_autocast_enabled("cpu"):
            top = logits.detach().topk(2)
            lead = top.values[:, :1] - top.values[:, 1:]
            logits = logits.scatter_add(1, top.indices[:, :1], torch.where(lead < self.within, -lead - 0.01, 0.0))
        return logits


@pytest.mark.parametrize("attack", [minimal_pgd, ddn, carlini_wagner], ids=["minimal_pgd", "ddn", "carlini_wagner"])
def test_bfloat16_claims_of_minimal_norm_attacks_are_judged_in_float32(
    attack: Callable[..., AttackResult], digits: Digits
) -> None:
    network, images, labels = digits
    rash = Prepared(network, Rash(network, 0.5), "planted", channels_last=False, bfloat16=True)
    near = minimal_pgd(network, images, labels).images * 0.98 + 0.02 * images
    assert (rash(near).argmax(1) != network(near).argmax(1)).any(), "the plant must lie"
    ours, theirs = (attack(model, images, labels) for model in (rash, network))
    assert ours.success.float().mean() >= theirs.success.float().mean() - 0.05
    assert (network(ours.images).argmax(1) != labels).equal(ours.success)
    seen = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        nonlocal seen
        seen += len(inputs[0])

    with network.register_forward_hook(count):
        assert attack(rash, images, labels).queries.sum() == seen


def test_bfloat16_claims_refused_while_stopping_early_are_attacked_again(digits: Digits) -> None:
    network, images, labels = digits
    rash = Prepared(network, Rash(network, 1.0), "planted", channels_last=False, bfloat16=True)
    ours, theirs = (bim(model, images, labels, epsilon=0.2, stop_early=True) for model in (rash, network))
    assert theirs.success.float().mean() > 0.9
    assert ours.success.float().mean() >= theirs.success.float().mean() - 0.02
    assert (network(ours.images).argmax(1) != labels).equal(ours.success)
    assert ours.queries.float().mean() < 60, "what is confirmed must leave"


@pytest.mark.parametrize("stop_early", [False, True])
def test_bfloat16_finds_the_same(digits: Digits, stop_early: bool) -> None:
    network, images, labels = digits
    prepared = prepare(network, images, bfloat16=True)
    assert prepared.how.endswith("bfloat16")
    logits = prepared(images)
    assert (logits - network(images)).abs().max() > 1e-4, "half precision must have been used"
    assert (prepared.in_float32(images) - network(images)).abs().max() < 1e-4
    ours, theirs = (pgd(m, images, labels, epsilon=0.1, stop_early=stop_early) for m in (prepared, network))
    assert ours.success.float().mean().item() == pytest.approx(theirs.success.float().mean().item(), abs=0.02)
    near, exact = (minimal_pgd(m, images, labels) for m in (prepared, network))
    assert near.success.all()
    median = [(r.images - images).abs().flatten(1).amax(1).median().item() for r in (near, exact)]
    assert median[0] == pytest.approx(median[1], rel=0.04)
