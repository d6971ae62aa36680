"""What a network is trained on: objectives, each (classifier, images, labels) to named loss terms.

The terms are already weighted; the loss is their sum. A defence is an objective: cross-entropy is no defence, with
noise it is Gaussian augmentation, `Defend` adds the multi-scale reconstruction, and `adversarial_cross_entropy` attacks
its batch first. Randomness (noise, dropout) is torch's global generator, which training seeds for every epoch.
"""

import weakref
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from defendpp.decoder import AutoEncoder, HourglassDecoder, Image, PyramidDecoder
from defendpp.encoder import Block, PrivateBlocks, find_blocks, tap
from defendpp.frequency import linear, low_pass
from defendpp.networks import home
from defendpp.stability import add_noise, consistency, movement
from defendpp.threats import Attack

Images = Float[Tensor, "batch channel height width"]
Labels = Int[Tensor, " batch"]
Terms = dict[str, Tensor]
Objective = Callable[[nn.Module, Tensor, Tensor], Terms]


def cross_entropy(
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    *,
    noise: float = 0.0,
    clip: bool = False,
    coarse: float = 0.0,
    agreement: float = 0.0,
) -> Terms:
    """Plain classification; with `noise` > 0 on noisy images (Gaussian augmentation).

    clip, coarse: see `add_noise`. agreement: weight of `consistency` between two noisy copies, both of which are
    classified.
    """
    copies = noisy_copies(images, noise, clip=clip, coarse=coarse, n=2 if agreement else 1)
    return classification_terms(classifier(copies), labels, agreement)


def noisy_copies(
    images: Images, sigma: float, *, clip: bool, coarse: float, n: int
) -> Float[Tensor, "copies channel height width"]:
    """n noisy copies of the batch, one after the other, to be seen in one pass."""
    if n > 1 and not sigma:
        raise ValueError("agreement and bottleneck compare noisy copies: noise must be above 0")
    copies = [add_noise(images, sigma, clip=clip, coarse=coarse) for _ in range(n)]
    return torch.cat(copies) if n > 1 else copies[0]


def classification_terms(
    logits: Float[Tensor, "copies classes"], labels: Int[Tensor, " batch"], agreement: float = 0.0
) -> Terms:
    """Cross-entropy, the mean over the copies; with a weight for their `agreement`, also their `consistency`."""
    copies = logits.split(len(labels))
    terms = {"classification": torch.stack([nn.functional.cross_entropy(each, labels) for each in copies]).mean()}
    if agreement:
        terms["consistency"] = consistency(copies, agreement)
    return terms


def penalty(
    classifier: nn.Module, images: Images, labels: Labels, *, of: Callable[..., Tensor], weight: float
) -> Terms:
    """`weight` times a penalty of `stability` on the clean images, as an objective to go `Together` with another."""
    name = getattr(of, "func", of).__name__
    return {name: weight * of(classifier, images, labels)}


class Together(nn.Module):
    """Several objectives as one: the terms of all. Those that are modules are trained and moved with it."""

    def __init__(self, *objectives: Objective) -> None:
        super().__init__()
        self.objectives = objectives
        self.modules_among = nn.ModuleList([each for each in objectives if isinstance(each, nn.Module)])

    def extra_repr(self) -> str:
        """The others, for telling two trainings apart."""
        return ", ".join(str(each) for each in self.objectives if not isinstance(each, nn.Module))

    def forward(self, classifier: nn.Module, images: Images, labels: Labels) -> Terms:
        """All terms; `ValueError` where two have one name."""
        terms: Terms = {}
        for each in self.objectives:
            found = each(classifier, images, labels)
            if terms.keys() & found.keys():
                raise ValueError(f"two objectives have a term of the name {min(terms.keys() & found.keys())!r}")
            terms |= found
        return terms


def adversarial_cross_entropy(
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    *,
    attack: Attack,
    clean_weight: float = 0.0,
    max_norm: float | None = None,
) -> Terms:
    """Adversarial training: `clean_weight` on the clean batch, the rest on what `attack` makes of it.

    0.5 with FGSM is Goodfellow et al. (2015), 0 with PGD is Madry et al. (2018). max_norm: the L2 norm to which longer
    perturbations are shortened; minimal-norm attacks have no budget of their own (with DDN: Rony et al. 2019).
    """
    if not 0 <= clean_weight <= 1:
        raise ValueError(f"clean_weight must be in [0, 1], not {clean_weight}")
    terms: Terms = {}
    if clean_weight < 1:
        attacked = perturb(classifier, images, labels, attack, max_norm)
        terms["adversarial"] = (1 - clean_weight) * nn.functional.cross_entropy(classifier(attacked), labels)
    if clean_weight > 0:
        terms["classification"] = clean_weight * nn.functional.cross_entropy(classifier(images), labels)
    return terms


def perturb(
    classifier: nn.Module, images: Images, labels: Labels, attack: Attack, max_norm: float | None = None
) -> Images:
    """What `attack` makes of the images, at most `max_norm` away in L2; randomness is torch's global generator."""
    random = {"generator": torch.Generator().manual_seed(int(torch.randint(2**62, ())))} if attack.is_random else {}
    attacked = attack.run(classifier, images, labels, **random).images
    if max_norm is None:
        return attacked
    change = attacked - images
    norms = change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    shortened: Tensor = images + change * (max_norm / norms).clamp_max(1)
    return shortened


def reconstruction_terms(rebuilt: Sequence[Image], targets: Sequence[Image], weights: Sequence[float]) -> Terms:
    """The terms of equation (3): weight times the mean squared error over pixels, where the weight is not 0."""
    return {
        f"reconstruction_{m}": weight * mse_loss(image, target)
        for m, (image, target, weight) in enumerate(zip(rebuilt, targets, weights, strict=True))
        if weight != 0
    }


class Defend(nn.Module):
    """L = L_cls + L_rect of Defend++ (sections 3.3 and 3.4): classification and multi-scale reconstruction together.

    `weights` has one number a scale, largest scale first: (1, 0.01, 0.01) is the paper's, (0.8, 0.01, 0.01) the
    authors' code's, (1, 0, 0) the full scale only. `targets(images, M)` makes the images to rebuild: `low_pass`
    (MS-LP) or `linear` (MS-LI). With `noise` > 0 encoder and classifier see noisy images while the targets stay clean,
    which makes the auto-encoder a denoiser. With all weights 0 this is `cross_entropy`, to the bit.

    coarse, agreement: as for `cross_entropy`. bottleneck: weight of the `movement` of the deepest shared map between
    two noisy copies. With agreement or bottleneck every step sees two copies.
    """

    def __init__(
        self,
        auto_encoder: AutoEncoder,
        shared: Sequence[Block],
        *,
        weights: Sequence[float],
        targets: Callable[[Images, int], list[Image]] = low_pass,
        noise: float = 0.0,
        clip: bool = False,
        coarse: float = 0.0,
        agreement: float = 0.0,
        bottleneck: float = 0.0,
    ):
        super().__init__()
        if not weights or any(not weight >= 0 for weight in weights):
            raise ValueError(f"the weights of the scales must be at least 0, not {tuple(weights)}")
        for name, value in {"noise": noise, "agreement": agreement, "bottleneck": bottleneck}.items():
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if (agreement or bottleneck) and not noise:
            raise ValueError("agreement and bottleneck compare noisy copies: noise must be above 0")
        self.auto_encoder = auto_encoder
        self.shared = tuple(shared)
        self.weights = tuple(weights)
        self.targets = targets
        self.noise = noise
        self.clip = clip
        self.coarse = coarse
        self.agreement = agreement
        self.bottleneck = bottleneck
        self.built_for: weakref.ref[nn.Module] | None = None  # no submodule: the classifier is not ours

    def extra_repr(self) -> str:
        """What determines the objective beside its modules, for `print` and for telling two trainings apart."""
        shared = [block.name for block in self.shared]
        targets = getattr(self.targets, "__qualname__", "")
        text = f"weights={self.weights}, noise={self.noise}, clip={self.clip}, {targets=}, {shared=}"
        later = {name: getattr(self, name) for name in ("coarse", "agreement", "bottleneck")}
        return text + "".join(f", {name}={value}" for name, value in later.items() if value)

    def forward(self, classifier: nn.Module, images: Images, labels: Labels) -> Terms:
        """The terms "classification" and "reconstruction_0", "reconstruction_1", ..."""
        if self.built_for is not None and self.built_for() is not classifier:
            raise ValueError("this objective was built for another classifier: call defend() with the one to train")
        copies = 2 if self.agreement or self.bottleneck else 1
        seen = noisy_copies(images, self.noise, clip=self.clip, coarse=self.coarse, n=copies)
        with tap(classifier, self.shared) as maps:
            terms = classification_terms(classifier(seen), labels, self.agreement)
        if any(self.weights):
            targets = self.targets(images, len(self.weights))
            if copies > 1:
                targets = [torch.cat([each] * copies) for each in targets]
            terms |= reconstruction_terms(self.auto_encoder(seen, maps), targets, self.weights)
        if self.bottleneck:
            deepest = maps[self.shared[-1].name]
            terms["bottleneck"] = self.bottleneck * movement(deepest.split(len(images)))
        return terms

    def classify_and_rebuild(
        self, classifier: nn.Module, images: Images
    ) -> tuple[Float[Tensor, "batch classes"], list[Image]]:
        """Logits and [Ĩ^0, ..., Ĩ^{M-1}] from one forward pass of the classifier."""
        with tap(classifier, self.shared) as maps:
            logits = classifier(images)
        return logits, self.auto_encoder(images, maps)


def defend(
    classifier: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    noise: float = 0.0,
    clip_noise: bool = False,
    coarse: float = 0.0,
    agreement: float = 0.0,
    bottleneck: float = 0.0,
    decoder: str = "pyramid",
    targets: str = "low-pass",
    scales: int | None = None,
    full_scale_weight: float = 1.0,
    scale_weight: float = 0.01,
    shared_blocks: int | None = None,
    block_names: Sequence[str] | None = None,
) -> Defend:
    """The Defend++ objective for `classifier`, any network with a resolution pyramid, on images of `image_shape`.

    decoder: "pyramid" (the paper's), "hourglass", "hourglass-sc" or "hourglass-sa". targets: "low-pass" (MS-LP) or
    "linear" (MS-LI). scales: M, by default the 7x7 rule. scale_weight: λ of equation (3), the weight of all scales but
    the full one. shared_blocks: k, by default all that are found. block_names: where they are not to be found. The
    other arguments are those of `Defend`. The decoder's initial weights come from torch's global generator.

    Raises `ValueError` for an unknown name, and what `find_blocks` and the decoders raise.
    """
    skips = {"hourglass": "none", "hourglass-sc": "concatenate", "hourglass-sa": "add"}
    makers = {"low-pass": low_pass, "linear": linear}
    if decoder != "pyramid" and decoder not in skips:
        raise ValueError(f"decoder must be one of pyramid, {', '.join(skips)}, not {decoder!r}")
    if targets not in makers:
        raise ValueError(f"targets must be one of {', '.join(makers)}, not {targets!r}")
    blocks = find_blocks(classifier, image_shape, block_names)
    shared = len(blocks) if shared_blocks is None else shared_blocks
    private = PrivateBlocks(classifier, blocks, shared, image_shape)
    rebuild = (
        PyramidDecoder(blocks, image_shape, scales)
        if decoder == "pyramid"
        else HourglassDecoder(blocks, image_shape, scales, skips[decoder])
    )
    objective = Defend(
        AutoEncoder(private, blocks[shared - 1], rebuild),
        blocks[:shared],
        weights=[full_scale_weight] + [scale_weight] * (len(rebuild.sizes) - 1),
        targets=makers[targets],
        noise=noise,
        clip=clip_noise,
        coarse=coarse,
        agreement=agreement,
        bottleneck=bottleneck,
    )
    objective.built_for = weakref.ref(classifier)
    return objective.to(home(classifier))
