"""What the attacks share: checked inputs, a model left as found, one gradient pass per step, success re-predicted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from defendpp.attacks.precision import exact_float32
from defendpp.attacks.prepare import Prepared

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttackResult:
    """What an attack made of a batch.

    images: in [0, 1], shape and dtype of the images attacked.
    success: the model, run once more on `images` at full precision, predicts another class than the label (untargeted)
        or the wanted class (targeted).
    queries: forward passes of the model spent on each image, with or without a gradient, the last check included.
    """

    images: Float[Tensor, "batch *shape"]
    success: Bool[Tensor, " batch"]
    queries: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Classifier:
    """A model as a checked function to logits; of a `Prepared` one the fast copy, its original where asked."""

    model: nn.Module
    classes_needed: int

    @property
    def original(self) -> nn.Module:
        """The model that has the last word."""
        return self.model.original if isinstance(self.model, Prepared) else self.model

    @property
    def bfloat16(self) -> bool:
        """Whether the logits are of half precision, so that what they claim near a boundary is often false."""
        return isinstance(self.model, Prepared) and self.model.in_bfloat16

    @property
    def passes(self) -> int:
        """Forward passes that a judged step costs: one more where `verdict` needs it."""
        return 1 + self.bfloat16

    def __call__(self, batch: Tensor, exactly: bool = False) -> Tensor:
        """The logits of a batch, `exactly` those of the original; ValueError where they are no logits, or too few."""
        return self._checked(self.original if exactly else self.model, batch)

    @torch.no_grad()
    def verdict(self, batch: Tensor, logits: Tensor) -> Tensor:
        """The logits to judge a batch by: those given, or where they are of half precision the copy's in float32."""
        if not (isinstance(self.model, Prepared) and self.model.in_bfloat16):
            return logits
        with torch.autocast(batch.device.type, enabled=False):
            return self._checked(self.model.in_float32, batch)

    def _checked(self, model: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        if not len(batch):  # many models cannot flatten an empty batch, so it never reaches them
            return batch.new_zeros(0, self.classes_needed)
        logits = model(batch)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model must return logits of shape ({len(batch)}, classes), got {found}")
        if logits.shape[1] < self.classes_needed:
            raise ValueError(
                f"labels must be below the model's {logits.shape[1]} classes, got label {self.classes_needed - 1}"
            )
        return logits.to(batch.dtype)  # under autocast logits come back in half precision


def check_inputs(images: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless images are (batch, ...) float32 or float64 in [0, 1] with one class index each."""
    for name, given in {"images": images, "labels": labels}.items():
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, got {type(given).__name__}")
    if images.device != labels.device:
        raise ValueError(f"images and labels must be on one device, got {images.device} and {labels.device}")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64 in [0, 1], got {images.dtype}")
    if images.ndim < 2:
        raise ValueError(f"images must have a batch axis and at least one more, got shape {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must have one entry per image, got shape {tuple(labels.shape)} for {len(images)} images"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integer class indices, got {labels.dtype}")
    if not images.numel():
        return
    low, high = (bound.item() for bound in images.aminmax())
    if not (low >= 0 and high <= 1):  # written so that nan is refused too
        raise ValueError(f"images must lie in [0, 1], got values from {low} to {high}")
    if (lowest := int(labels.min())) < 0:
        raise ValueError(f"labels must be class indices from 0, got {lowest}")


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise ValueError when the argument `name` is below `minimum`, or nan."""
    if not value >= minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_norm(norm: str) -> None:
    """Raise ValueError unless the norm of a ball is one of the two that are known."""
    if norm not in ("linf", "l2"):
        raise ValueError(f'norm must be "linf" or "l2", got {norm!r}')


def check_start(start: Tensor | None, images: Tensor) -> None:
    """Raise ValueError where an attack is to start at images of another shape."""
    if start is not None and start.shape != images.shape:
        raise ValueError(f"start must have the shape of the images, {tuple(images.shape)}, got {tuple(start.shape)}")


def per_image(name: str, value: float | Tensor, images: Tensor) -> Tensor:
    """The argument `name` as a column (batch, 1, ..., 1): finite and >= 0, one number or one per image."""
    values = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    if values.ndim and values.shape != images.shape[:1]:
        raise ValueError(
            f"{name} must be one number or one per image, got shape {tuple(values.shape)} for {len(images)} images"
        )
    refused = values[~(values.isfinite() & (values >= 0))]
    if refused.numel():
        raise ValueError(f"{name} must be finite and at least 0, got {refused[0].item()}")
    return column(values.to(images).expand(len(images)), images)


def radius_of_ball(epsilon: float | Tensor, norm: str, images: Tensor) -> Tensor:
    """The budget as a column (batch, 1, ..., 1): finite and >= 0, and at most 1 in L∞, or ValueError."""
    check_norm(norm)
    radius = per_image("epsilon", epsilon, images)
    if len(radius):
        check_largest(radius.max().item(), norm)
    return radius


def check_largest(epsilon: float, norm: str) -> None:
    """Raise ValueError for an L∞ budget beyond the range of a pixel: most likely it counts 255 levels."""
    if norm == "linf" and epsilon > 1:
        raise ValueError(f"an L∞ epsilon is in pixel units of [0, 1] and at most 1, not {epsilon:g}: {epsilon:g}/255?")


def column(values: Tensor, images: Tensor) -> Tensor:
    """(batch,) as (batch, 1, ..., 1), to broadcast against the images."""
    return values.reshape(-1, *[1] * (images.ndim - 1))


@contextmanager
def attacking(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[tuple[Classifier, Tensor, Tensor]]:
    """The model, frozen and in evaluation mode, as a function to logits; and copies of the images and labels.

    On the way out, also after an exception, every submodule's mode and every parameter's requires_grad are as found.
    Works inside no_grad and inference_mode.
    """
    classify = Classifier(model, int(labels.max()) + 1 if len(labels) else 1)
    original = classify.original
    modes = [(module, module.training) for each in (model, original) for module in each.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in original.parameters()]
    try:
        model.eval()
        original.eval()
        for parameter, _ in trained:
            parameter.requires_grad_(False)
        with exact_float32(), torch.inference_mode(False), torch.enable_grad():
            # autograd refuses tensors made under inference_mode; a clone of one is an ordinary tensor
            yield classify, images.detach().clone(), labels.clone().long()
    finally:
        for module, mode in modes:
            module.training = mode  # not by train(), which sets the children too and which models override
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def gradient_pass(
    classify: Classifier, images: Tensor, labels: Tensor, objective: Loss
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch classes"], Float[Tensor, "batch *shape"]]:
    """One forward and one backward pass: objective per image, logits, gradient of each image's objective.

    The sum over the batch is differentiated, so that an image's gradient does not depend on the batch size. Where the
    objective does not depend on the image, or its gradient is nan, the gradient is 0; so it is under no_grad, which
    saves the backward pass. Raises ValueError when the objective is not one number per image.
    """
    variable = images.detach().requires_grad_()
    logits = classify(variable)
    values = objective(logits, labels)
    if values.shape != labels.shape:
        raise ValueError(
            f"the loss must return one value per image, got {tuple(values.shape)} for {len(labels)} images"
        )
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), variable, allow_unused=True, materialize_grads=True)
    else:
        gradient = torch.zeros_like(images)
    return values.detach(), logits.detach(), gradient.nan_to_num()


def is_adversarial(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], targeted: bool
) -> Bool[Tensor, " batch"]:
    """Whether the predicted class is the wanted one (targeted) or any but the true one."""
    hit = logits.argmax(1) == labels
    return hit if targeted else ~hit


@torch.no_grad()
def recheck(classify: Classifier, images: Tensor, labels: Tensor, targeted: bool) -> Bool[Tensor, " batch"]:
    """Whether the images to be returned are adversarial, by one more forward pass outside any autocast."""
    with torch.autocast(images.device.type, enabled=False):
        return is_adversarial(classify(images, exactly=True), labels, targeted)


def cross_entropy(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Cross-entropy of each image, in nats."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Highest logit of the other classes minus the labelled one: positive where another class wins."""
    rows = labels[:, None]
    return logits.scatter(1, rows, -torch.inf).amax(1) - logits.gather(1, rows)[:, 0]


def l2_norm(images: Tensor) -> Tensor:
    """L2 norm of each image, as a column (batch, 1, ..., 1)."""
    norms: Tensor = torch.linalg.vector_norm(images, dim=tuple(range(1, images.ndim)), keepdim=True)
    return norms


def linf_norm(images: Tensor) -> Tensor:
    """Largest absolute value of each image, as a column (batch, 1, ..., 1)."""
    norms: Tensor = torch.linalg.vector_norm(images, torch.inf, dim=tuple(range(1, images.ndim)), keepdim=True)
    return norms


def unit(directions: Tensor) -> Tensor:
    """Each image scaled to L2 norm 1; an image of zeros stays zero."""
    tiny = torch.finfo(directions.dtype).tiny
    # a confident network's gradients are so small that their squares underflow: first scale the largest entry to 1
    largest = directions.abs().amax(dim=tuple(range(1, directions.ndim)), keepdim=True)
    directions = directions / largest.clamp_min(tiny)
    return directions / l2_norm(directions).clamp_min(tiny)


def into_l2_ball(images: Tensor, clean: Tensor, radius: Tensor) -> Tensor:
    """The images, those farther than `radius` (a column) from the clean ones brought back towards these."""
    offset = images - clean
    shrink = radius / l2_norm(offset).clamp_min(torch.finfo(offset.dtype).tiny)
    return clean + offset * shrink.clamp_max(1)


class Closest:
    """The adversarial image of smallest distance offered so far, L2 by default; the original where there was none."""

    def __init__(self, images: Tensor, norm: Callable[[Tensor], Tensor] = l2_norm) -> None:
        self.originals = images
        self.norm = norm
        self.images = self.second = images
        self.norms = images.new_full((len(images),), torch.inf)

    def offer(self, images: Tensor, adversarial: Bool[Tensor, " batch"]) -> None:
        """Keep those of `images` that are adversarial and nearer than what is held."""
        norms = self.norm(images - self.originals).flatten()
        nearer = adversarial & (norms < self.norms)
        self.second = torch.where(column(nearer, images), self.images, self.second)
        self.images = torch.where(column(nearer, images), images, self.images)
        self.norms = torch.where(nearer, norms, self.norms)

    def result(self, classify: Classifier, labels: Tensor, targeted: bool, queries: int) -> AttackResult:
        """The closest images, checked once more; the original where the check fails. `queries` excludes the check.

        The closest lie so near the boundary that the model and a copy of it which rounds otherwise may disagree. Where
        the check fails, the second closest is checked, lest the network look more robust than it is.
        """
        images, queries = self.images, queries + 1
        success = recheck(classify, images, labels, targeted)
        if (~success & self.norms.isfinite()).any():
            images, queries = torch.where(column(success, images), images, self.second), queries + 1
            success = recheck(classify, images, labels, targeted)
        images = torch.where(column(success, images), images, self.originals)
        return AttackResult(images, success, torch.full_like(labels, queries))
