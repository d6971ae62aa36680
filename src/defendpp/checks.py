"""Checks that say whether a robust accuracy can be believed: signs that an attack failed for the wrong reason.

After Carlini et al. 2019 ("On evaluating adversarial robustness", arXiv:1902.06705), Croce and Hein 2020 (the warnings
of AutoAttack, arXiv:2003.01690), Pintor et al. 2022 ("Indicators of attack failure", arXiv:2106.09947) and Zimmermann
et al. 2022 (the binarisation test, arXiv:2206.13991). A check that passes proves nothing; one that fails names a reason
to disbelieve the accuracy until it is explained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from defendpp import attacks, binarisation
from defendpp.adaptive import stand_ins
from defendpp.attacks import AttackResult, Prepared
from defendpp.attacks.engine import attacking, cross_entropy, gradient_pass, margin
from defendpp.attacks.gradient_sign import Norm
from defendpp.intervals import accuracy, chance
from defendpp.networks import are_probabilities

Images = Float[Tensor, "batch *shape"]
Labels = Int[Tensor, " batch"]
Attack = Callable[..., AttackResult]
"""(model, images, labels, *, epsilon, steps, restarts, generator) to `AttackResult`; `defendpp.attacks.pgd` is one."""

TOLERATED = 0.02
"""Share of the images that may contradict an expectation: restarts and rounding move a few."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    verdict: Literal["passed", "failed", "not judged"]
    detail: str

    def __str__(self) -> str:
        return f"{self.verdict:10}  {self.name}: {self.detail}"


def check(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    epsilon: float,
    norm: Norm = "linf",
    attack: Attack | None = None,
    steps: int = 40,
    others: Sequence[nn.Module] = (),
    views: Sequence[nn.Module] | None = None,
    queries: int = 500,
    seed: int = 0,
) -> list[Check]:
    """Every check of `model` under `attack` within `epsilon` (pixel units) of `images`, in the order of the page.

    attack: what the robust accuracy was measured with, by default `attacks.pgd` on the margin. steps: of the attack;
    the check of convergence doubles them. others: other classifiers for the same images, for the transfer check; an
    undefended network of the same architecture is the usual one. views: the same model with other gradients; they are
    one check more. By default a model behind a purifier, which passes no gradient, is attacked through the first of
    its `adaptive.stand_ins`, and the others are its views. queries: of Square. The attack is tried on what the model
    gets right. A check that has nothing to go by is "not judged", and says why. The model is left as found.

    Raises `ValueError` where there are no images.
    """
    if not len(images):
        raise ValueError("there are no images to check on")
    if views is None:
        model, *views = stand_ins(model)
    others = [stand_ins(each)[0] for each in others]
    found = [
        _judged("evaluation mode", lambda: evaluation_mode(model.original if isinstance(model, Prepared) else model)),
        _judged("logits", lambda: logits(model, images)),
        _judged("deterministic", lambda: deterministic(model, images)),
    ]
    with attacking(model, images, labels) as (classify, clean, y), torch.no_grad():
        outputs = classify(clean)
        correct = outputs.argmax(1) == y
    found.append(_judged("better than chance", lambda: better_than_chance(correct, y, outputs.shape[1])))
    if not correct.any():
        why = f"the model gets none of the {len(labels)} images right"
        return [*found, *(Check(name, "not judged", why) for name in ("gradients", *BY_GRADIENT))]
    images, labels = images[correct], labels[correct]
    attack = attack or partial(attacks.pgd, norm=norm, loss="margin")
    tried = _Trial(model, images, labels, epsilon, norm, attack, steps, seed, others, queries, views)
    found.append(_judged("gradients", lambda: gradients(model, images, labels)))
    if found[-1].verdict == "failed":
        why = "the model gives no useful gradients, so attacks that follow them say nothing"
        return [*found, *(Check(name, "not judged", why) for name in BY_GRADIENT)]
    found += [_judged(name, partial(run, tried)) for name, run in BY_GRADIENT.items()]
    return [*found, _judged("the right gradient", tried.other_gradients)] if views else found


class Complaint(Exception):  # noqa: N818 - it is a finding, no error
    """A check failed; the text says of what."""


class NothingToJudgeBy(Exception):  # noqa: N818
    """A check cannot say anything; the text says why."""


def _judged(name: str, run: Callable[[], str]) -> Check:
    try:
        return Check(name, "passed", run())
    except Complaint as complaint:
        return Check(name, "failed", str(complaint))
    except NothingToJudgeBy as reason:
        return Check(name, "not judged", str(reason))


def evaluation_mode(model: nn.Module) -> str:
    """Whether batch normalisation and dropout are in eval mode; attacks see to it, other uses of the model may not."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    training = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if module.training and isinstance(module, kinds)
    ]
    if training:
        raise Complaint(f"{len(training)} modules are in training mode, the first {training[0]}: call model.eval()")
    return "no batch normalisation or dropout is in training mode"


def logits(model: nn.Module, images: Images) -> str:
    """Whether outputs are logits and not probabilities, on which losses saturate."""
    with attacking(model, images, images.new_zeros(len(images)).long()) as (classify, clean, _), torch.no_grad():
        outputs = classify(clean)
    if are_probabilities(outputs):
        raise Complaint("outputs lie in [0, 1] and add up to 1: give the attack logits, not probabilities")
    return "outputs are no probabilities"


def deterministic(model: nn.Module, images: Images) -> str:
    """Whether two passes give the same; else attacks must average over passes (EOT), and evaluations repeat."""
    with attacking(model, images, images.new_zeros(len(images)).long()) as (classify, clean, _), torch.no_grad():
        first, second = classify(clean), classify(clean)
    scale = first.flatten(1).norm(dim=1).clamp_min(torch.finfo(first.dtype).tiny)
    change = float(((first - second).norm(dim=1) / scale).max())
    if not change <= 1e-4:
        raise Complaint(f"two passes over the same images differ by up to {change:.2g} of the logits' norm")
    return "two passes over the same images agree"


def better_than_chance(correct: Bool[Tensor, " batch"], labels: Labels, classes: int) -> str:
    """Whether more images are right than a guess, or the commonest class alone, would get.

    Not judged where the 95 % interval leaves that open, nor on images of one class.
    """
    right = accuracy(correct.cpu().numpy())
    guess = chance(labels.cpu().numpy(), classes)
    text = f"{right} of {right.n} images are right without an attack"
    if right.value <= 1 / classes:
        raise Complaint(f"{text}: no better than a guess among {classes} classes")
    if guess == 1:
        raise NothingToJudgeBy(
            f"all {right.n} images are of class {int(labels[0])}, which a network that always says so gets right: "
            "take a random subset, Images.take"
        )
    if right.value <= guess:
        raise Complaint(f"{text}: no better than naming the commonest class, {100 * guess:.1f} %")
    if right.low <= guess:
        raise NothingToJudgeBy(f"{text}, too few to tell it from a guess, {100 * guess:.1f} %")
    return text


def gradients(model: nn.Module, images: Images, labels: Labels) -> str:
    """Whether the loss has a gradient at the images: finite, and not 0 for both the cross-entropy and the margin."""
    useless = torch.ones(len(images), dtype=torch.bool, device=images.device)
    with attacking(model, images, labels) as (classify, clean, y):
        for loss in (cross_entropy, margin):
            try:
                _, _, gradient = gradient_pass(classify, clean, y, loss)
            except RuntimeError as error:
                raise Complaint(f"the backward pass fails: {' '.join(str(error).split())}") from error
            useless &= (gradient == 0).flatten(1).all(1)
    share = float(useless.float().mean())
    if share > TOLERATED:
        raise Complaint(f"the loss does not depend on the image for {100 * share:.0f} % of {len(images)} images")
    return f"{100 * (1 - share):.0f} % of {len(images)} images have a gradient"


class _Trial:
    """One model under one attack: what several checks compare is computed once."""

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        labels: Labels,
        epsilon: float,
        norm: Norm,
        attack: Attack,
        steps: int,
        seed: int,
        others: Sequence[nn.Module],
        queries: int,
        views: Sequence[nn.Module],
    ) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.epsilon, self.norm, self.attack, self.steps, self.seed = epsilon, norm, attack, steps, seed
        self.others, self.queries, self.views = others, queries, views
        self.usual: Bool[Tensor, " batch"] | None = None

    def run(self, model: nn.Module, epsilon: float, steps: int, restarts: int = 1) -> AttackResult:
        return self.attacked(model, self.images, self.labels, epsilon, steps, restarts)

    def attacked(
        self, model: nn.Module, images: Images, labels: Labels, epsilon: float, steps: int, restarts: int = 1
    ) -> AttackResult:
        random = torch.Generator().manual_seed(self.seed)
        return self.attack(model, images, labels, epsilon=epsilon, steps=steps, restarts=restarts, generator=random)

    @property
    def largest(self) -> float:
        """The budget within which any image lies."""
        return 1.0 if self.norm == "linf" else float(self.images[0].numel() ** 0.5)

    def broken(self) -> Bool[Tensor, " batch"]:
        """By the attack as it is."""
        if self.usual is None:
            self.usual = self.run(self.model, self.epsilon, self.steps).success
        return self.usual

    def compare(self, weaker: str, by_weaker: Bool[Tensor, " batch"]) -> str:
        """The attack must break what a weaker one breaks, image by image."""
        missed = int((by_weaker & ~self.broken()).sum())
        return self.few(missed, f"{weaker} breaks {missed} of {len(self.images)} images that the attack does not")

    def few(self, n: int, text: str) -> str:
        """`text`, as a complaint where n images are more than may contradict an expectation."""
        if n > max(1, TOLERATED * len(self.images)):
            raise Complaint(text)
        return text

    def unbounded(self) -> str:
        share = float((~self.run(self.model, self.largest, self.steps).success).float().mean())
        resist = f"{100 * share:.0f} % of {len(self.images)} images resist"
        if share > TOLERATED:
            raise Complaint(f"with any image allowed (epsilon {self.largest:g}), {resist}")
        return f"with any image allowed, {resist}"

    def single_step(self) -> str:
        one = attacks.bim(
            self.model, self.images, self.labels, epsilon=self.epsilon, step_size=self.epsilon, steps=1, norm=self.norm
        )
        return self.compare("one step", one.success)

    def transfer(self) -> str:
        if not self.others:
            raise NothingToJudgeBy("no other classifier was given to make images on")
        broken = torch.zeros_like(self.broken())
        for other in self.others:
            made = self.run(other, self.epsilon, self.steps).images
            with attacking(self.model, made, self.labels) as (classify, shown, y), torch.no_grad():
                broken |= classify(shown, exactly=True).argmax(1) != y
        return self.compare("what was made on another classifier", broken)

    def other_gradients(self) -> str:
        broken = torch.zeros_like(self.broken())
        for view in self.views:
            broken |= self.run(view, self.epsilon, self.steps).success
        return self.compare("the same attack through another gradient of the same model", broken)

    def square(self) -> str:
        if self.norm != "linf" or self.images.ndim != 4:
            raise NothingToJudgeBy("Square is for images and the L∞ norm here")
        found = attacks.square(
            self.model, self.images, self.labels, epsilon=self.epsilon, queries=self.queries,
            generator=torch.Generator().manual_seed(self.seed),
        )  # fmt: skip
        return self.compare("Square, which uses no gradients,", found.success)

    def converged(self) -> str:
        more = self.run(self.model, self.epsilon, 2 * self.steps).success
        again = self.run(self.model, self.epsilon, self.steps, restarts=3).success
        return self.compare("twice the steps or three starts", more | again)

    def monotone(self) -> str:
        larger = min(2 * self.epsilon, self.largest)
        if larger <= self.epsilon:
            raise NothingToJudgeBy("the budget allows any image")
        lost = int((self.broken() & ~self.run(self.model, larger, self.steps).success).sum())
        told = "twice the budget" if larger == 2 * self.epsilon else f"a budget of {larger:g}"
        return self.few(lost, f"{lost} of {len(self.images)} images resist {told} and not the budget")

    def silent(self, n: int = 20) -> str:
        """Images one by one, so that every pass of the model is about the same image."""
        unused = 0
        shown = range(min(n, len(self.images)))
        for i in shown:
            watched = _Watched(self.model, self.images[i], int(self.labels[i]), self.epsilon, self.norm)
            made = self.attacked(watched, self.images[i : i + 1], self.labels[i : i + 1], self.epsilon, self.steps)
            returned = bool(made.success)
            unused += watched.has_seen and not returned
        if unused:
            raise Complaint(f"on {unused} of {len(shown)} images it met an adversarial image and returned another")
        return f"what it returns is adversarial wherever it met an adversarial image ({len(shown)} images)"

    def planted(self) -> str:
        found, made = binarisation.find_planted(
            self.attacked,
            self.model,
            self.images,
            epsilon=self.epsilon,
            norm=self.norm,
            steps=self.steps,
            seed=self.seed,
        )
        if made == 0:
            raise NothingToJudgeBy("no point of the ball can be told from the others by what the last layer is given")
        text = f"the attack finds {found} of {made} adversarial images that were made to exist"
        if made - found > max(1, 0.1 * made):
            raise Complaint(text)
        return text


BY_GRADIENT: dict[str, Callable[[_Trial], str]] = {
    "unbounded attack wins": _Trial.unbounded,
    "steps beat one step": _Trial.single_step,
    "own gradients beat transfer": _Trial.transfer,
    "own gradients beat Square": _Trial.square,
    "converged": _Trial.converged,
    "monotone": _Trial.monotone,
    "keeps its successes": _Trial.silent,
    "finds what was planted": _Trial.planted,
}
"""The checks that need gradients to follow."""


class _Watched(nn.Module):
    """A model that notes whether it was ever shown an adversarial image within the ball around one image."""

    def __init__(self, model: nn.Module, image: Tensor, label: int, epsilon: float, norm: str) -> None:
        super().__init__()
        self.model, self.image, self.label, self.epsilon, self.norm = model, image, label, epsilon, norm
        self.has_seen = False

    def forward(self, images: Tensor) -> Tensor:
        """The model's own output."""
        outputs: Tensor = self.model(images)
        change = (images.detach() - self.image).flatten(1)
        size = change.abs().amax(1) if self.norm == "linf" else change.norm(dim=1)
        is_allowed = size <= self.epsilon * (1 + 1e-5) + 1e-7
        self.has_seen |= bool(((outputs.detach().argmax(1) != self.label) & is_allowed).any())
        return outputs
