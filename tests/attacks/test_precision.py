"""Graphics cards are told not to round float32 where an attack, its check or a certificate depends on it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from defendpp.adversarial_sets import predictions
from defendpp.attacks import pgd, prepare
from defendpp.attacks.precision import exact_float32
from defendpp.certify import certify

IMAGES, LABELS = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
NOTED: list[bool] = []


class Watched(nn.Module):
    """A linear classifier that notes whether cards may round."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        NOTED.append(torch.backends.cudnn.allow_tf32)
        logits: Tensor = self.layer(images.flatten(1))
        return logits


@pytest.mark.parametrize(
    "use",
    [
        lambda model: pgd(model, IMAGES, LABELS, epsilon=0.1, steps=2),
        lambda model: prepare(model, IMAGES),
        lambda model: predictions(model, IMAGES),
        lambda model: certify(model, IMAGES, sigma=0.5, samples=10),
    ],
)
def test_cards_may_not_round_and_then_may_again(use: Callable[[nn.Module], object]) -> None:
    assert torch.backends.cudnn.allow_tf32, "PyTorch's default, without which this tests nothing"
    NOTED.clear()
    use(Watched())
    assert NOTED
    assert not any(NOTED)
    assert torch.backends.cudnn.allow_tf32


def test_what_the_user_set_otherwise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mixed:
        @property
        def allow_tf32(self) -> bool:
            raise RuntimeError("set for convolutions alone")

    monkeypatch.setattr(torch.backends, "cudnn", Mixed())
    with exact_float32():
        pass
