"""A recipe: everything that determines a trained network, as a typed value whose hash names it. No torch here."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from defendpp.files import short_hash

OF_ONE_DEFENCE = {
    "defend": ("decoder", "targets", "scales", "full_scale_weight", "scale_weight", "shared_blocks"),
    "adversarial": ("attack", "attack_epsilon", "attack_steps", "clean_weight"),
    "comdefend": ("mean_pixel",),
}
"""Fields that say nothing with another defence, and so are refused with it."""
PENALTIES = {
    "consistency": ("none", "defend", "binarise"),
    "bottleneck": ("defend",),
    "gradient_penalty": ("none", "defend"),
    "curvature": ("none", "defend"),
}
"""Weights of what keeps answers steady, and the defences that they go with: a threshold passes no gradient."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train one network."""

    data: str = "mnist-5k"
    """mnist-5k (built in), mnist, fashion-mnist, cifar10, or a path: image folder, parquet, NIPS-2017 layout."""
    image_size: int | None = None
    """Resize and crop images to this side in pixels; needed where they differ in size."""
    training_images: int | None = None
    """Train on only so many of the training images, drawn with split_seed."""
    network: str = "resnet18"
    """resnet18, resnet50 or vgg16 of the paper, or timm/NAME or torchvision/NAME."""
    width: int = 64
    """Channels of the first block of the paper's networks; 64 is the paper's, 16 trains on a CPU."""
    stem: Literal["halve", "full"] = "halve"
    """Of the paper's ResNets: every block halves the resolution, or the first keeps it (stride-1 stem)."""
    dropout: float = 0.5
    """Probability of dropout between the layers of vgg16's head, of 100 and 40 units; other networks have none."""
    pretrained: bool = False
    """Start from the published weights of a timm or torchvision network; with 0 epochs, leave them as they are."""
    start: str | None = None
    """Start from the classifier of this run, of the same network and data: a folder, or one beside this run's."""

    defence: Literal["none", "defend", "adversarial", "comdefend", "binarise"] = "none"
    """none: cross-entropy (with noise: Gaussian augmentation). defend: Defend++. adversarial: on attacked images.
    comdefend: ComDefend in front of the classifier of `start`, which stays as it is; the width is that of `start`, and
    at 64 ComDefend is as published.
    binarise: trained and used behind a threshold at 0.5, which the noise comes before."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the input, in pixel units; Defend++ rebuilds the clean image."""
    clip_noise: bool = False
    """Clip noisy images to [0, 1]."""
    coarse_noise: float = 0.0
    """Share of the noise's variance that is of low frequency."""
    consistency: float = 0.0
    """Weight of the agreement of two noisy copies of each image (Jeong and Shin 2020's λ; their η is 0.5)."""
    bottleneck: float = 0.0
    """Defend++: weight of how far the deepest shared feature map moves between two noisy copies."""
    gradient_penalty: float = 0.0
    """Weight of the squared norm of the loss's gradient by the image (Finlay and Oberman 2019)."""
    curvature: float = 0.0
    """Weight of the change of that gradient over curvature_step (CURE, Moosavi-Dezfooli et al. 2019)."""
    curvature_step: float = 1.0
    """In pixel units of L2."""
    decoder: Literal["pyramid", "hourglass", "hourglass-sc", "hourglass-sa"] = "pyramid"
    """The paper's Laplacian pyramid, or an hourglass without skips, with concatenated (SC) or added (SA) ones."""
    targets: Literal["low-pass", "linear"] = "low-pass"
    """The smaller images to rebuild: by DCT (MS-LP) or by linear interpolation (MS-LI)."""
    scales: int | None = None
    """M, the number of scales; by default as many as are at least 7x7 and larger than the bottleneck."""
    full_scale_weight: float = 1.0
    """Weight of the full-size reconstruction; 1 in equation (3), 0.8 in the authors' code."""
    scale_weight: float = 0.01
    """λ of equation (3), the weight of the smaller scales; 0 is "without MS-LP"."""
    shared_blocks: int | None = None
    """k, the first blocks that the auto-encoder shares with the classifier; by default all."""
    blocks: tuple[str, ...] = ()
    """Names of the network's blocks, where they are not to be found automatically."""

    attack: Literal["fgsm", "pgd", "ddn"] = "pgd"
    """Adversarial training: what makes the images, anew for every batch."""
    attack_epsilon: float | None = None
    """Adversarial training: L∞ budget of fgsm and pgd (default: the paper's), largest L2 norm of ddn (2.4 gray, 1)."""
    attack_steps: int | None = None
    """Adversarial training: steps of pgd (default 7) or ddn (default 20)."""
    clean_weight: float = 0.0
    """Adversarial training: weight of the clean batch in the loss; 0.5 is usual with fgsm."""
    attacked_run: str | None = None
    """Adversarial training on a fixed set: what the attack makes once of the training images on the classifier of this
    run (a folder, or one beside this run's), rounded to 8 bits, together with the clean images."""
    mean_pixel: float = 0.5
    """ComDefend: the gray that it starts from, about the images' mean; on dark digits 0.5 ends in black for good."""

    learning: Literal["joint", "alternating"] = "joint"
    """All terms together, or first cycles of auto-encoder and classifier in turn (section 3.4)."""
    cycles: int = 2
    """Alternating learning: number of cycles."""
    auto_encoder_epochs: int = 1
    """Alternating learning: epochs of the auto-encoder in each cycle."""
    classifier_epochs: int = 1
    """Alternating learning: epochs of the classifier in each cycle."""
    epochs: int = 10
    """Epochs of joint learning."""
    schedule: Literal["one-cycle", "step"] = "one-cycle"
    """one-cycle: up and down again, for short trainings. step: times 0.1 every decay_every epochs, the paper's."""
    learning_rate: float = 0.1
    """The highest learning rate, for batches of batch_size."""
    decay_every: int = 100
    """Epochs between the steps of the step schedule."""
    batch_size: int = 256
    """Images a step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Adam is what ComDefend was published with."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Of either optimizer."""
    clip_norm: float | None = None
    """Clip the gradient to this norm."""
    keep: Literal["best", "last"] = "best"
    """The weights of the epoch with the best accuracy on clean validation images, or the last: clean accuracy is often
    highest before a network is robust."""
    augment: Literal["none", "crop", "crop-flip"] = "none"
    """Random crops after padding by 4 pixels; with random mirroring, as is usual for CIFAR-10."""
    seed: int = 0
    """Of the initial weights, the order of the images, noise and augmentation."""
    split_seed: int = 0
    """Of the division into training, validation and test images."""
    scale: Literal["cpu", "paper", "quickstart"] = "cpu"
    """What the numbers may be compared with: "paper" for the paper's width and length."""

    def check(self) -> None:
        """Refuse, in one sentence, names that there are not and numbers that cannot work: a `ValueError`."""
        for name, kind in get_type_hints(Recipe).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        for name in ("width", "batch_size", "epochs", "decay_every", "learning_rate"):
            is_untrained = name == "epochs" and self.epochs == 0 and self.pretrained and self.defence == "none"
            if not getattr(self, name) > 0 and not is_untrained:
                rest = ", or 0 for a pretrained network that is left as it is" if name == "epochs" else ""
                raise ValueError(f"{name} must be above 0{rest}, not {getattr(self, name)}")
        if self.training_images is not None and self.training_images < 2:
            raise ValueError(f"training_images must be at least 2, not {self.training_images}")
        for name, defences in PENALTIES.items():
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
            if getattr(self, name) and self.defence not in defences:
                known = " or ".join(f'"{each}"' for each in defences)
                raise ValueError(f'{name} goes with the defence {known}, not with "{self.defence}"')
        if not 0 <= self.coarse_noise <= 1:
            raise ValueError(f"coarse_noise must be in [0, 1], not {self.coarse_noise}")
        if (self.consistency or self.bottleneck) and not self.noise:
            raise ValueError("consistency and bottleneck compare noisy copies: noise must be above 0")
        for name in ("noise", "full_scale_weight", "scale_weight", "momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.noise > 2:
            raise ValueError(f"noise is in pixel units of [0, 1], not {self.noise:g}: {self.noise:g}/255?")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, because of batch normalisation, not {self.batch_size}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, not {self.clip_norm}")
        if self.defence == "adversarial" and self.noise:
            raise ValueError(f'the defence "{self.defence}" takes no noise, but noise is {self.noise}')
        if not 0 <= self.clean_weight <= 1:
            raise ValueError(f"clean_weight must be in [0, 1], not {self.clean_weight}")
        if self.attack_steps is not None and (self.attack == "fgsm" or self.attack_steps < 1):
            raise ValueError(
                f"attack_steps must be at least 1, and only pgd and ddn have them, not {self.attack_steps}"
            )
        if self.learning == "alternating" and self.defence != "defend":
            raise ValueError(f'alternating learning needs a decoder: defence "defend", not "{self.defence}"')
        if self.attacked_run is not None and (self.defence != "adversarial" or self.clean_weight):
            raise ValueError(
                'a fixed set of attacked images needs the defence "adversarial" and no clean_weight, since the clean '
                f'images are part of it, but got "{self.defence}" and {self.clean_weight}'
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if not 0 < self.mean_pixel < 1:
            raise ValueError(f"mean_pixel must be between 0 and 1, not {self.mean_pixel}")
        if self.defence == "comdefend" and (self.start is None or self.noise):
            raise ValueError(
                f"ComDefend goes in front of the classifier of a run, start, and has noise of its own, but start is "
                f"{self.start} and noise {self.noise}"
            )
        for defence, names in OF_ONE_DEFENCE.items():
            for name in names if self.defence != defence else ():
                if getattr(self, name) != getattr(Recipe, name):
                    raise ValueError(f'{name} goes with the defence "{defence}", not with "{self.defence}"')

    @property
    def passes(self) -> int:
        """Over the training images, in epochs: those of alternating learning come before joint ones."""
        before = self.cycles * (self.auto_encoder_epochs + self.classifier_epochs)
        return self.epochs + (before if self.learning == "alternating" else 0)

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that differ between any two recipes; a new field leaves those of old ones alone."""
        return short_hash(self.beside(Recipe()))

    def beside(self, other: "Recipe") -> dict[str, object]:
        """The fields that differ from those of `other`, with their values here."""
        return {name: value for name, value in vars(self).items() if value != getattr(other, name)}

    def __str__(self) -> str:
        """What tables call the network by default."""
        names = {
            "none": [],
            "defend": ["Defend++"],
            "adversarial": [f"Adv. {self.attack.upper()}{', fixed set' if self.attacked_run else ''}"],
            "comdefend": ["ComDefend"],
            "binarise": ["0/1 images"],
        }
        parts = names[self.defence]
        parts += [f"noise {self.noise:g}"] if self.noise else []
        parts += [f"{name.replace('_', ' ')} {getattr(self, name):g}" for name in PENALTIES if getattr(self, name)]
        return " + ".join(parts) or "no defence"
