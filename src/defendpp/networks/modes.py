"""Where a network lies, and running it as it will be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; on the way out every submodule's mode is as found."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode  # not by train(), which sets the children too


def home(network: nn.Module) -> torch.device:
    """The device of its weights, or of its buffers; of a network without any, the CPU."""
    return next((tensor.device for tensor in chain(network.parameters(), network.buffers())), torch.device("cpu"))


def are_probabilities(outputs: Tensor) -> bool:
    """Whether all rows of `outputs`, (batch, classes), lie in [0, 1] and add up to 1, as logits do not."""
    within = bool((outputs >= 0).all() and (outputs <= 1).all())
    return within and bool(((outputs.sum(1) - 1).abs() <= 1e-5).all())
