"""Attacks with their settings."""

import torch
from examples import small_network

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
