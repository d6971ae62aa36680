"""Small things that several tests use."""

import torch
from torch import nn


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)

    def block(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU())

    return nn.Sequential(
        block(1, 8), block(8, 12), block(12, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
