"""Attacks with their settings."""

import torch
from examples import small_network
from torch import nn

from defendpp import threats


def test_rounded_images_are_of_8_bits_and_judged_again() -> None:
    model = small_network().eval()
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(1)
    plain, rounded = threats.ddn(steps=20, levels=None), threats.rounded(threats.ddn(steps=20, levels=None), levels=4)
    exact, stored = (attack.run(model, images, labels) for attack in (plain, rounded))
    assert torch.equal(stored.images, (exact.images * 3).round() / 3)
    with torch.no_grad():
        assert torch.equal(stored.success, model(stored.images).argmax(1) != labels)
    assert torch.equal(stored.queries, exact.queries + 1)
    assert rounded.settings == {**plain.settings, "levels": 4}


def test_an_attack_is_named_with_its_budget() -> None:
    assert str(threats.fgsm(0.2)) == "fgsm 0.2"
    assert str(threats.rounded(threats.fgsm(0.2))) == "fgsm 0.2, 256 levels"
    assert str(threats.ddn()) == "ddn"


def test_auto_attack_finds_what_pgd_finds_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    images = torch.rand(12, 1, 8, 8)
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10  # wrong from the start: it is not attacked
    state = torch.get_rng_state()
    for norm, epsilon in (("linf", 0.03), ("l2", 0.2)):
        result = threats.auto_attack(epsilon, norm=norm).run(model, images, labels)  # type: ignore[arg-type]
        by_pgd = threats.pgd(epsilon, norm=norm).run(model, images, labels)  # type: ignore[arg-type]
        assert 0 < by_pgd.success.sum() < 12
        assert (result.success | ~by_pgd.success).all()
        assert result.images[0].equal(images[0])
        change = (result.images - images).flatten(1)
        assert (change.abs().amax(1) if norm == "linf" else change.norm(dim=1)).max() <= epsilon * 1.001
        assert result.success.equal(model(result.images).argmax(1) != labels)
    assert torch.get_rng_state().equal(state)
