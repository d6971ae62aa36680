"""The paper's classifiers: ResNet-18, ResNet-50 and VGG16 for small images.

ResNet-18 and ResNet-50 (He et al. 2016) have torchvision's parameter names, so that their weights load into
torchvision's and timm's models; unlike these they have no pooling after the stem, since the paper's images are 28x28
and 32x32. VGG16 is configuration D of Simonyan & Zisserman 2015 with batch normalisation and a small head.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Stem = Literal["halve", "full"]


class BlockInfo(TypedDict):
    """One block of a network, in timm's words."""

    module: str  # name of the submodule whose output is the block's
    num_chs: int  # its channels
    reduction: int  # side of the image / side of the output, where the side is a power of two


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5, left)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch out out_height out_width"]:
        """Stride 2 halves height and width, rounded up."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2016, figure 5, right), the stride in the 3x3."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = shortcut(channels, width * self.expansion, stride)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch out out_height out_width"]:
        """Stride 2 halves height and width, rounded up."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def shortcut(channels: int, out: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution where the shape changes."""
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, global average pooling, one linear layer.

    With stem "halve" (7x7, stride 2, no pooling) every one of the four blocks ends at half the side of the one before:
    28 gives 14, 7, 4, 2. With stem "full" (3x3, stride 1, no pooling, customary for CIFAR-10) the first keeps the side:
    32 gives 32, 16, 8, 4.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        classes: int,
        channels: int,
        width: int,
        stem: Stem,
    ) -> None:
        super().__init__()
        first = 2 if stem == "halve" else 1
        kernel = 7 if stem == "halve" else 3
        self.conv1 = nn.Conv2d(channels, width, kernel, stride=first, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.feature_info: list[BlockInfo] = []
        inputs = width
        for stage, depth in enumerate(depths):
            name, stage_width = f"layer{stage + 1}", width * 2**stage
            blocks = nn.Sequential()
            for position in range(depth):
                blocks.append(block(inputs, stage_width, stride=2 if stage > 0 and position == 0 else 1))
                inputs = stage_width * block.expansion
            self.add_module(name, blocks)
            self.feature_info.append({"module": name, "num_chs": inputs, "reduction": first * 2**stage})
        self.fc = nn.Linear(inputs, classes)
        he_normal(self)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """Images in [0, 1] to logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        for info in self.feature_info:
            x = self.get_submodule(info["module"])(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five blocks that end with 2x2 max pooling, which rounds up: 28 gives 14, 7, 4, 2, 1.

    The head follows the released code of the paper: global average pooling, then linear layers of 100, 40 and `classes`
    units with dropout between. That code's network is thin, width 16; Simonyan & Zisserman's has width 64.
    """

    def __init__(self, *, classes: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.feature_info: list[BlockInfo] = []
        for number, (depth, factor) in enumerate(((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)), start=1):
            block = nn.Sequential()
            for _ in range(depth):
                block.append(nn.Conv2d(channels, width * factor, 3, padding=1))
                block.append(nn.BatchNorm2d(width * factor))
                block.append(nn.ReLU())
                channels = width * factor
            block.append(nn.MaxPool2d(2, ceil_mode=True))
            self.add_module(f"block{number}", block)
            self.feature_info.append({"module": f"block{number}", "num_chs": channels, "reduction": 2**number})
        self.head = nn.Sequential(
            nn.Linear(channels, 100),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(100, 40),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(40, classes),
        )
        he_normal(self)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """Images in [0, 1] to logits."""
        for info in self.feature_info:
            x = self.get_submodule(info["module"])(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def he_normal(network: nn.Module) -> None:
    """Draw the convolutions' weights from N(0, 2 / fan-out) and set their biases to 0 (He et al. 2015, equation 14)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
