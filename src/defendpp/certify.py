"""Randomised smoothing: a radius within which no attack whatever changes the prediction (Cohen et al. 2019).

Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", arXiv:1902.02918. The smoothed
classifier predicts the class that the base classifier names most often under Gaussian noise; what is certified is this
smoothed classifier, not the base classifier's single answer. Works for any classifier; one that was trained with noise
of about the same deviation is certified furthest.
"""

from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from defendpp.attacks.precision import exact_float32
from defendpp.networks import evaluating

ABSTAINED = -1
"""The class of an image on which the smoothed classifier abstains."""

LOOKS = (0.01, 0.1)
"""Shares of the samples after which a hopeless image is given up."""
DOUBT = 0.01
"""An image is hopeless where its share exceeds 1/2 with no more than this confidence."""


@dataclass(frozen=True)
class Certificate:
    """What is known of the smoothed classifier on each image, each image with failure probability alpha."""

    prediction: Int[Tensor, " batch"]
    """The class, or `ABSTAINED`."""
    radius: Float[Tensor, " batch"]
    """L2, in pixel units: no change that is smaller moves the prediction. 0 where it abstained."""
    samples: Int[Tensor, " batch"]
    """Noisy copies that were classified."""


def certify(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    *,
    sigma: float,
    samples: int = 10_000,
    selection: int = 100,
    alpha: float = 0.001,
    batch_size: int = 500,
    generator: Generator | None = None,
) -> Certificate:
    """CERTIFY of Cohen et al. (section 3.2.2), with hopeless images given up early.

    The class is chosen by `selection` noisy copies; of `samples` others the share that falls into it is bounded from
    below, p, with confidence 1 - `alpha` (`lower_bound`); the radius is sigma Φ⁻¹(p) (theorem 1), or the smoothed
    classifier abstains where p <= 1/2. After each of `LOOKS` an image is given up where even an upper bound of its
    share does not exceed 1/2: giving up claims nothing, so that what is claimed stays true with probability 1 - alpha.

    The noise is not clipped to [0, 1], as the theorem demands. sigma: its standard deviation in pixel units. generator:
    of the noise, on the CPU (by default one with seed 0). The model is run in eval mode; its modes are left as found.

    Raises `ValueError` for a sigma or alpha out of range, or no samples.
    """
    if not 0 < sigma < inf:
        raise ValueError(f"sigma must be a standard deviation above 0, not {sigma}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be a probability between 0 and 1, not {alpha}")
    if sigma > 2:
        raise ValueError(f"sigma is in pixel units of [0, 1], not {sigma:g}: {sigma:g}/255?")
    for name, value in (("samples", samples), ("selection", selection), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    generator = Generator().manual_seed(0) if generator is None else generator
    with evaluating(model), exact_float32():
        found = [_certify(model, image, sigma, samples, selection, alpha, batch_size, generator) for image in images]
    prediction, radius, used = zip(*found, strict=True) if found else ((), (), ())
    return Certificate(torch.tensor(prediction).long(), torch.tensor(radius).float(), torch.tensor(used).long())


def _certify(
    model: nn.Module,
    image: Tensor,
    sigma: float,
    samples: int,
    selection: int,
    alpha: float,
    batch_size: int,
    generator: Generator,
) -> tuple[int, float, int]:
    counts = _counts(model, image, sigma, selection, batch_size, generator)
    chosen = int(counts.argmax())
    hits = done = 0
    for stop in (*(max(1, int(share * samples)) for share in LOOKS), samples):
        if stop > done:
            hits += int(_counts(model, image, sigma, stop - done, batch_size, generator)[chosen])
            done = stop
        if done < samples and 1 - lower_bound(done - hits, done, DOUBT) <= 0.5:
            return ABSTAINED, 0.0, selection + done
    radius = certified_radius(lower_bound(hits, samples, alpha), sigma)
    return (chosen if radius > 0 else ABSTAINED), radius, selection + samples


def _counts(
    model: nn.Module, image: Tensor, sigma: float, n: int, batch_size: int, generator: Generator
) -> Int[Tensor, " class"]:
    """How often the base classifier names each class, of n noisy copies of an image."""
    total = torch.zeros(0, dtype=torch.int64)
    for size in [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0):
        noise = torch.randn((size, *image.shape), generator=generator, device=generator.device, dtype=image.dtype)
        logits = model(image + sigma * noise.to(image.device))
        total = torch.bincount(logits.argmax(1).cpu(), minlength=logits.shape[1]) + (total if len(total) else 0)
    return total


def lower_bound(hits: int, n: int, alpha: float) -> float:
    """A share that the true one exceeds with confidence 1 - alpha, after `hits` of n (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    return float(beta.ppf(alpha, hits, n - hits + 1)) if hits else 0.0


def certified_radius(share: float, sigma: float) -> float:
    """sigma Φ⁻¹(share), theorem 1 of Cohen et al. with the other classes' share bounded by 1 - share; 0 if negative."""
    from scipy.stats import norm

    return max(0.0, sigma * float(norm.ppf(share)))
