"""The paper's classifiers, any timm or torchvision model by name, and their weights on disk."""

from defendpp.networks.modes import are_probabilities, evaluating, home
from defendpp.networks.named import Normalized, build, core
from defendpp.networks.own import VGG16, BlockInfo, ResNet
from defendpp.networks.weights import fingerprint, load_weights, save

__all__ = [
    "VGG16", "BlockInfo", "Normalized", "ResNet", "are_probabilities", "build", "core", "evaluating", "fingerprint",
    "home", "load_weights", "save",
]  # fmt: skip
