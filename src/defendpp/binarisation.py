"""The binarisation test: can an attack find an adversarial image that was made to exist, by the model's own gradients?

Zimmermann, Brendel, Tramer and Carlini 2022, "Increasing confidence in adversarial robustness evaluations",
arXiv:2206.13991. An attack that cannot is no measure of the model's robustness.
"""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from defendpp.attacks import AttackResult, Prepared

Run = Callable[[nn.Module, Tensor, Tensor, float, int], AttackResult]
"""An attack: (model, images, labels, epsilon, steps) to its result."""


def find_planted(
    run: Run,
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    *,
    epsilon: float,
    norm: str,
    steps: int,
    seed: int = 0,
    n: int = 20,
    inner: int = 200,
) -> tuple[int, int]:
    """Of how many planted adversarial images the attack found how many: (found, made), of the first `n` images.

    For each image the last linear layer gives way to one of two classes: the image and `inner` random points well
    inside its ball, and one random point on the ball's surface. Where the model's features do not tell them apart
    nothing is planted; a model without a linear layer gives (0, 0).
    """
    if isinstance(model, Prepared):  # its original, which judges what attacks claim, must have the same new layer
        model = model.original
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        return 0, 0
    probe = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    found = made = 0
    for image in images[:n].split(1):
        points, planted = _ball(image, epsilon, norm, inner, generator)
        features = _features(probe, linear[-1], torch.cat([image, points, planted]))
        head = _telling_apart(features[:-1], features[-1])
        if head is not None:
            changed = copy.deepcopy(probe)
            changed.set_submodule(linear[-1], head.to(image))
            made += 1
            found += bool(
                run(changed, image, torch.zeros(1, dtype=torch.long, device=image.device), epsilon, steps).success
            )
    return found, made


def _ball(image: Tensor, epsilon: float, norm: str, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n points well inside the ball around an image, and one on its surface, all in [0, 1]."""
    noise = torch.randn((n + 1, *image.shape[1:]), generator=generator).to(image)
    if norm == "linf":
        inside, surface = (
            noise[:-1].sign() * torch.rand(noise[:-1].shape, generator=generator).to(image),
            noise[-1:].sign(),
        )
    else:
        unit = noise / noise.flatten(1).norm(dim=1).view(-1, *[1] * (noise.ndim - 1))
        inside, surface = unit[:-1], unit[-1:]
    # a boundary of 1 would leave no room between the points that are told apart
    return (image + 0.5 * epsilon * inside).clamp(0, 1), (image + epsilon * surface).clamp(0, 1)


@torch.no_grad()
def _features(model: nn.Module, last: str, images: Tensor) -> Tensor:
    """What the last linear layer is given."""
    seen: list[Tensor] = []
    hook = model.get_submodule(last).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(images)
    finally:
        hook.remove()
    return seen[-1]


def _telling_apart(inner: Tensor, planted: Tensor) -> nn.Linear | None:
    """A linear layer whose class 0 holds all of `inner` and whose class 1 holds `planted`; None where there is none.

    Its direction is that of least squares with a little ridge, its threshold lies just before the planted point.
    """
    centre = inner.double().mean(0)
    points, far = inner.double() - centre, planted.double() - centre
    covariance = points.T @ points / len(points)
    ridge = (
        1e-3 * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(len(far), dtype=far.dtype, device=far.device)
    )
    direction = torch.linalg.solve(covariance + ridge, far)
    highest, height = float((points @ direction).max()), float(far @ direction)
    if not height > highest:
        return None
    threshold = highest + 0.9 * (height - highest)
    direction = direction / (height - highest)
    offset = threshold / (height - highest) + float(centre @ direction)
    head = nn.Linear(len(far), 2)
    with torch.no_grad():
        head.weight.copy_(torch.stack([-direction, direction]))
        head.bias.copy_(torch.tensor([offset, -offset]))
    return head
