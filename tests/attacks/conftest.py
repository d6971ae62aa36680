"""A small trained classifier of real 8x8 digits, and linear classifiers whose nearest boundary is known."""

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn


@pytest.fixture(scope="session")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A convolutional network fitted to 1,500 digits, and 60 held-out images in [0, 1] with their labels."""
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.as_tensor(data.target, dtype=torch.long)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(128, 10),
        )
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(network(images[:1500]), labels[:1500]).backward()
            optimizer.step()
    network.zero_grad()
    network.eval()
    images, labels = images[1500:1560], labels[1500:1560]
    assert (network(images).argmax(1) == labels).float().mean() > 0.9
    return network, images, labels


@pytest.fixture
def affine() -> Callable[..., nn.Linear]:
    """Makes a linear layer of given weights (classes, inputs) and biases (classes,)."""

    def make(weight: Tensor, bias: Tensor) -> nn.Linear:
        layer = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer

    return make


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Users run without the shape checks of the test suite, and must get our sentence instead."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
