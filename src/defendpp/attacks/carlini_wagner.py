"""The minimal L2 attack of Carlini and Wagner (IEEE S&P 2017, arXiv:1608.04644, section V-A and VI-A)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from defendpp.attacks.engine import (
    AttackResult,
    Closest,
    attacking,
    check_at_least,
    check_inputs,
    gradient_pass,
    is_adversarial,
    margin,
)

# Where tanh is flat no step moves a pixel, and on MNIST most pixels are exactly 0 or 1, at infinity in tanh space. So
# a start is held within tanh(±2.6) = ±0.99; it is then up to 0.005 off, which the distance term takes back.
LIMIT = 0.99


def carlini_wagner(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    targeted: bool = False,
    search_steps: int = 5,
    iterations: int = 20,
    learning_rate: float = 0.15,
    initial_constant: float = 1.0,
    confidence: float = 0.0,
) -> AttackResult:
    """Smallest L2 perturbation that changes the prediction, for each image.

    Minimises ‖x' - x‖² + c · max(confidence - margin, 0) over w with x' = (1 + tanh w) / 2, by Adam; the margin is the
    best other logit minus the true one, or the wanted logit minus the best other one. Each search step starts anew
    with, per image, a c ten times larger while nothing was found, and halfway between the highest c that failed and
    the lowest that worked afterwards.

    model: images in [0, 1] to logits; left as found. images: in [0, 1]. labels: the true classes, or the wanted ones if
    `targeted`. search_steps: values of c tried. iterations: Adam steps for each. learning_rate: in units of w; the
    default lets 20 iterations cross from ±2.6 to 0, as images of pixels near 0 and 1 need. With many iterations, or
    where a perturbation is small beside the pixels, take 0.01. initial_constant: first c. confidence: logits by which
    an iterate must win to be kept.

    Returns the adversarial iterate of smallest distance, those after each last step included. An image already
    adversarial (by `confidence`) comes back unchanged with success; one never made so comes back unchanged. Costs
    `search_steps` * `iterations` gradient passes and `search_steps` + 2 forward passes.

    Raises ValueError on images outside [0, 1], labels that do not fit images or model, search_steps or iterations < 1,
    confidence < 0, learning_rate or initial_constant not above 0.
    """
    check_inputs(images, labels)
    check_at_least("search_steps", search_steps, 1)
    check_at_least("iterations", iterations, 1)
    check_at_least("confidence", confidence, 0)
    for name, value in (("learning_rate", learning_rate), ("initial_constant", initial_constant)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and above 0, got {value}")
    sign = -1 if targeted else 1

    with attacking(model, images, labels) as (classify, x, y):
        w0 = torch.atanh((2 * x - 1).clamp(-LIMIT, LIMIT))
        c = x.new_full((len(x),), initial_constant)
        failed, worked = torch.zeros_like(c), torch.full_like(c, torch.inf)

        def enough(logits: Tensor) -> Tensor:
            return is_adversarial(logits, y, targeted) & (sign * margin(logits, y) >= confidence)

        def shortfall(logits: Tensor, labels: Tensor) -> Tensor:
            return c * (confidence - sign * margin(logits, labels)).clamp_min(0)

        closest = Closest(x)
        with torch.no_grad():
            closest.offer(x, enough(classify(x, exactly=True)))
        for _ in range(search_steps):
            w, m, v = w0.clone(), torch.zeros_like(w0), torch.zeros_like(w0)
            found = torch.zeros_like(y, dtype=torch.bool)
            for t in range(1, iterations + 2):
                tanh = w.tanh()
                iterate = (1 + tanh) / 2
                with torch.set_grad_enabled(t <= iterations):  # the last iterate is judged, and moves no further
                    _, logits, g = gradient_pass(classify, iterate, y, shortfall)
                adversarial = enough(classify.verdict(iterate, logits))
                closest.offer(iterate, adversarial)
                found |= adversarial
                g = (2 * (iterate - x) + g) * (1 - tanh.square()) / 2  # the chain rule through tanh, by hand
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                w.addcdiv_(m, (v / (1 - 0.999**t)).sqrt_().add_(1e-8), value=-learning_rate / (1 - 0.9**t))
            failed, worked = torch.where(found, failed, c), torch.where(found, c, worked)
            c = torch.where(worked.isinf(), 10 * c, (failed + worked) / 2).clamp_max(1e10)  # the authors' highest c
        return closest.result(classify, y, targeted, queries=1 + search_steps * (iterations + 1) * classify.passes)
