"""Purifiers in front of a classifier: ComDefend, trained without one (Jia et al. 2019), and a plain threshold.

arXiv:1811.12673; layers, initial weights and loss follow the authors' TensorFlow files. The purifier ends in a hard
threshold, which has no gradient: an attack that follows gradients finds nothing there and proves nothing (Athalye et
al. 2018, arXiv:1802.00420). `Purified.attacked_through` puts a useful gradient in its place (their BPDA), `Averaged`
averages random numbers out (their EOT). A white-box evaluation takes, image by image, the worst over these.
"""

from itertools import pairwise
from math import inf, log

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

Images = Float[Tensor, "batch channel height width"]
Code = Float[Tensor, "batch map height width"]
Logits = Float[Tensor, "batch class"]
Labels = Int[Tensor, " batch"]

STAND_INS = ("straight-through", "identity")
"""What an attacker puts in the place of a gradient that there is not."""
GRADIENTS = ("exact", *STAND_INS)

GRAY = (32, 64, 128, 256, 128, 64, 64, 32)
LAYERS = {  # image channels: maps of the code, hidden channels of ComCNN and of RecCNN
    1: (4, GRAY, GRAY),
    3: (12, (16, 32, 64, 128, 256, 128, 64, 32), (32, 64, 128, 256, 128, 64, 32, 16)),
}


class ComDefend(nn.Module):
    """Images to images: ComCNN compresses every pixel to a few bits, RecCNN rebuilds the image from them.

    channels: those of the images, 1 (a code of 4 bits per pixel) or 3 (12 bits). width: multiplies the hidden channels,
    at least 1 of which stays; 1.0 is the published network. noise: standard deviation of the Gaussian noise that
    training subtracts from the code, which drives the code away from 0 and so makes it binary. test_noise: the same for
    `forward`, drawn from torch's global generator; 1 in the published TensorFlow files, 20 in the PyTorch ones, and
    with 0 `forward` is deterministic. Initial weights are He-normal by fan-in, biases 0. mean_pixel: of the training
    images; RecCNN's last bias starts where its sigmoid is this. 0.5 is as published, but on digits, which are mostly
    black, Adam then drives that sigmoid to black for good before the code says anything. From a width of 0.25, learning
    rates above 1e-4 can do so with any mean_pixel.

    Images may be of any size. The authors cut those of ImageNet into patches of 32x32; here they stay whole.

    Raises `ValueError` for other channels, a width that is not positive, a noise that is negative or infinite, or a
    mean_pixel outside (0, 1).
    """

    def __init__(
        self,
        channels: int,
        *,
        width: float = 1.0,
        noise: float = 20.0,
        test_noise: float = 0.0,
        mean_pixel: float = 0.5,
    ) -> None:
        super().__init__()
        if channels not in LAYERS:
            raise ValueError(f"channels must be 1 or 3, which ComDefend has layers for, not {channels}")
        if not 0 < width < inf:
            raise ValueError(f"width must be a positive factor of the published channels, not {width}")
        for name, deviation in (("noise", noise), ("test_noise", test_noise)):
            if not 0 <= deviation < inf:
                raise ValueError(f"{name} must be a standard deviation of at least 0 and finite, not {deviation}")
        if not 0 < mean_pixel < 1:
            raise ValueError(f"mean_pixel must be inside (0, 1), the range of pixels, not {mean_pixel}")
        self.width = width
        self.noise = noise
        self.test_noise = test_noise
        maps, compressing, rebuilding = LAYERS[channels]
        self.com_cnn = _convolutions(channels, compressing, maps, width)
        self.rec_cnn = _convolutions(maps, rebuilding, channels, width, last_bias=log(mean_pixel / (1 - mean_pixel)))

    def extra_repr(self) -> str:
        """What determines the purifier beside its layers."""
        return f"width={self.width:g}, noise={self.noise:g}, test_noise={self.test_noise:g}"

    def forward(self, images: Images, gradient: str = "exact") -> Images:
        """Images in [0, 1], rebuilt in [0, 1] from the binary code, in training mode too.

        gradient: what reaches `images` backward. "exact": that of the network as it is, none, for the threshold is
        flat. "straight-through": as if the code went to RecCNN as it is, without sigmoid (which training saturates, so
        that it has no gradient either) and threshold. "identity": as if the whole purifier returned its input.

        Raises `ValueError` for another `gradient`.
        """
        check_gradient(gradient)
        code = _noisy(self.code(images), self.test_noise)
        binary = (code > 0).to(code.dtype)
        # code - code.detach() is exactly 0, with the gradient of code; torch.fx traces it, unlike an autograd.Function
        if gradient == "straight-through":
            binary = binary + (code - code.detach())
        rebuilt: Tensor = self.rec_cnn(binary).sigmoid()
        return rebuilt + (images - images.detach()) if gradient == "identity" else rebuilt

    def soft(self, images: Images) -> tuple[Images, Code]:
        """The rebuilt images and the code in [0, 1], as in training: noise (torch's global generator), no threshold."""
        code = _noisy(self.code(images), self.noise).sigmoid()
        return self.rec_cnn(code).sigmoid(), code

    def code(self, images: Images) -> Code:
        """The code before noise, sigmoid and threshold; its signs are the bits."""
        code: Tensor = self.com_cnn(images - 0.5)
        return code


class Binarise(nn.Module):
    """Images to images of 0 and 1: feature squeezing to one bit (Xu et al. 2018, arXiv:1704.01155).

    On digits it takes nearly all that an L∞ budget below the distance of ink and paper from `threshold` could change;
    on photographs it takes the photograph.
    """

    def __init__(self, threshold: float = 0.5, steepness: float = 10.0) -> None:
        super().__init__()
        self.threshold, self.steepness = threshold, steepness

    def extra_repr(self) -> str:
        """What determines it."""
        return f"threshold={self.threshold:g}"

    def forward(self, images: Images, gradient: str = "exact") -> Images:
        """1 where a pixel exceeds the threshold, else 0.

        gradient: what reaches `images` backward. "exact": nothing. "straight-through": as of a sigmoid of `steepness`
        around the threshold, so that pixels near it are moved. "identity": as if the input were returned.

        Raises `ValueError` for another `gradient`.
        """
        check_gradient(gradient)
        bits = (images > self.threshold).to(images.dtype)
        if gradient == "exact":
            return bits
        soft = (self.steepness * (images - self.threshold)).sigmoid() if gradient == "straight-through" else images
        return bits + (soft - soft.detach())


class Purified(nn.Module):
    """A classifier behind a purifier: images in [0, 1] to logits.

    gradient: what passes the purifier backward, as in its own `forward`. It changes no logit, so it is not printed, and
    the network's fingerprint does not depend on it.

    Raises `ValueError` for an unknown `gradient`.
    """

    def __init__(self, purifier: ComDefend | Binarise, classifier: nn.Module, gradient: str = "exact") -> None:
        super().__init__()
        check_gradient(gradient)
        self.purifier = purifier
        self.classifier = classifier
        self.gradient = gradient

    def forward(self, images: Images) -> Logits:
        """Logits of the purified images."""
        logits: Tensor = self.classifier(self.purifier(images, self.gradient))
        return logits

    def attacked_through(self, gradient: str) -> "Purified":
        """The same two networks, shared and not copied, with another backward pass: the logits stay."""
        view = Purified(self.purifier, self.classifier, gradient)
        view.training = self.training  # not by train(), which would set the shared modules too
        return view


class Averaged(nn.Module):
    """A model whose forward pass is random, averaged over `draws` passes: images to logits.

    The logits are the logarithm of the mean softmax, so that any attack on this module is one on the expected
    prediction (expectation over transformation, Athalye et al. 2018); the mean of the logits would be ruled by the
    draws with the largest. A pass costs the time and memory of `draws` passes, and counts as one query.

    Raises `ValueError` where there is less than one draw.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws must be at least 1, not {draws}")
        self.model = model
        self.draws = draws

    def extra_repr(self) -> str:
        """The number of draws."""
        return f"draws={self.draws}"

    def forward(self, images: Images) -> Logits:
        """The logarithm of the mean softmax of the draws."""
        predictions = torch.stack([self.model(images).log_softmax(1) for _ in range(self.draws)])
        return predictions.logsumexp(0) - log(self.draws)


def purification(
    classifier: nn.Module, images: Images, labels: Labels, *, code_weight: float = 1e-4
) -> dict[str, Tensor]:
    """ComDefend's objective: the terms "reconstruction", a mean squared error, and "code", `code_weight` * mean(b²).

    Only the purifier of `classifier`, which must be a `Purified`, is run and gets gradients; the labels are not looked
    at. With `code_weight` 0 there is no term "code".

    Raises `ValueError` for another module, or a negative `code_weight`.
    """
    if not (isinstance(classifier, Purified) and isinstance(classifier.purifier, ComDefend)):
        raise ValueError(
            f"purification trains the ComDefend of a Purified classifier, not a {type(classifier).__name__}"
        )
    if not 0 <= code_weight < inf:
        raise ValueError(f"code_weight must be at least 0, not {code_weight}")
    rebuilt, code = classifier.purifier.soft(images)
    terms = {"reconstruction": mse_loss(rebuilt, images)}
    if code_weight > 0:
        terms["code"] = code_weight * code.square().mean()
    return terms


def check_gradient(gradient: str) -> None:
    """Raise `ValueError` where a purifier knows no such gradient."""
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, not {gradient!r}")


def _convolutions(
    channels: int, hidden: tuple[int, ...], out: int, width: float, last_bias: float = 0.0
) -> nn.Sequential:
    """3x3 convolutions that keep height and width, with ELU between."""
    sizes = [channels, *(max(1, round(width * wide)) for wide in hidden), out]
    layers = nn.Sequential()
    for number, (i, o) in enumerate(pairwise(sizes), start=1):
        convolution = nn.Conv2d(i, o, 3, padding=1)
        is_last = number == len(sizes) - 1
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.constant_(convolution.get_parameter("bias"), last_bias if is_last else 0.0)
        layers.append(convolution)
        if not is_last:
            layers.append(nn.ELU())
    return layers


def _noisy(code: Code, deviation: float) -> Code:
    if deviation == 0:
        return code
    # not randn_like, which draws in the order of the memory layout
    return code - deviation * torch.randn(code.shape, dtype=code.dtype, device=code.device)
