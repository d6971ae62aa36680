"""What keeps a network steady under small changes of its input: noise, and penalties on how far its answers move.

All of it needs clean images only and leaves the classifier as it is. Randomness is torch's global generator.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from defendpp.frequency import resample

Images = Float[Tensor, "batch channel height width"]
Labels = Int[Tensor, " batch"]
Logits = Float[Tensor, "batch class"]


def add_noise(images: Images, sigma: float, *, clip: bool = False, coarse: float = 0.0) -> Images:
    """`images` plus Gaussian noise of standard deviation `sigma` in pixel units; with `clip`, kept in [0, 1].

    coarse: the share of the noise's variance that is of low frequency: white noise of a quarter of the side, enlarged
    through the DCT to the images' size and to the same variance. 0 is white noise.
    """
    if sigma < 0:
        raise ValueError(f"the noise's standard deviation must be at least 0, not {sigma}")
    if sigma > 2:
        raise ValueError(f"noise is in pixel units of [0, 1], not {sigma:g}: {sigma:g}/255?")
    if not 0 <= coarse <= 1:
        raise ValueError(f"the share of coarse noise must be in [0, 1], not {coarse}")
    if sigma == 0:
        return images
    # made from a shape, so that it is the same in any memory layout
    noise = torch.randn(images.shape, dtype=images.dtype, device=images.device)
    if coarse:
        height, width = images.shape[-2:]
        small = (-(-height // 4), -(-width // 4))
        drawn = torch.randn((*images.shape[:-2], *small), dtype=images.dtype, device=images.device)
        # an orthonormal transform keeps the sum of squares, of which fewer samples made more pixels
        large = resample(drawn, (height, width))
        large = large / large.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-6)
        noise = (1 - coarse) ** 0.5 * noise + coarse**0.5 * large
    noisy = images + sigma * noise
    return noisy.clamp(0, 1) if clip else noisy


def consistency(logits: Sequence[Logits], weight: float, *, entropy: float = 0.5) -> Float[Tensor, ""]:
    """How far the predictions of several noisy copies lie apart (Jeong and Shin 2020, arXiv:2006.04062).

    `weight` (their λ) times the mean Kullback-Leibler divergence of each copy's distribution from the copies' mean
    distribution, in nats, plus `entropy` (their η, 0.5 whatever λ is) times the entropy of that mean, averaged over the
    batch. A large η makes networks that say the same of everything.
    """
    each = [one.log_softmax(1) for one in logits]
    mean = torch.stack([one.exp() for one in each]).mean(0)
    log_mean = mean.clamp_min(1e-20).log()
    apart = torch.stack([kl_div(one, log_mean, reduction="batchmean", log_target=True) for one in each]).mean()
    return weight * apart - entropy * (mean * log_mean).sum(1).mean()


def movement(maps: Sequence[Tensor]) -> Float[Tensor, ""]:
    """How far a feature map moves between two noisy copies, in relation to its size: mean |a - b|^2 / mean |a|^2.

    On the auto-encoder's bottleneck this is reinforcement of the bottleneck in the literal sense: what is not structure
    of the image, and differs between the copies, should not reach it.
    """
    first, second = maps
    size = 0.5 * (first.square().mean() + second.square().mean())
    moved: Tensor = (first - second).square().mean() / size.clamp_min(1e-12)
    return moved


def gradient_penalty(classifier: nn.Module, images: Images, labels: Labels, *, step: float = 0.01) -> Float[Tensor, ""]:
    """The mean squared L2 norm of the loss's gradient by the image, by a finite difference along it.

    Finlay and Oberman 2019, arXiv:1905.11468: ((l(x + h d) - l(x)) / h)^2 with d the gradient over its norm, which
    costs no second derivative. step: h, in pixel units of L2.
    """
    before, direction = _direction(classifier, images, labels)
    after = cross_entropy(classifier(images + step * direction), labels, reduction="none")
    return ((after - before) / step).square().mean()


def curvature_penalty(classifier: nn.Module, images: Images, labels: Labels, *, step: float) -> Float[Tensor, ""]:
    """How much the loss's gradient by the image changes over a step along its sign, mean squared L2 norm.

    CURE (Moosavi-Dezfooli et al. 2019, arXiv:1811.09716): |g(x + h z) - g(x)|^2 with z the sign of g over
    its norm. step: h, in pixel units of L2; the paper raises it from 0.1 to 1.5 or 3 over the first epochs.
    """
    variable = images.detach().requires_grad_()
    loss = cross_entropy(classifier(variable), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, variable, create_graph=True)
    direction = _unit(gradient.detach().sign())
    moved = (images + step * direction).detach().requires_grad_()
    (other,) = torch.autograd.grad(cross_entropy(classifier(moved), labels, reduction="sum"), moved, create_graph=True)
    change: Tensor = other - gradient
    return change.flatten(1).square().sum(1).mean()


def _direction(classifier: nn.Module, images: Images, labels: Labels) -> tuple[Tensor, Images]:
    """Each image's loss, and the direction in which it rises fastest."""
    variable = images.detach().requires_grad_()
    losses = cross_entropy(classifier(variable), labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), variable, retain_graph=True)
    return losses, _unit(gradient)


def _unit(images: Images) -> Images:
    norms: Tensor = images.flatten(1).norm(dim=1).clamp_min(1e-12)
    return images / norms.view(-1, 1, 1, 1)
