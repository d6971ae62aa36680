"""At what precision a graphics card computes what is said to be float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within, graphics cards multiply float32 as it is, and do not round it to 10 bits first (TF32), as cuDNN does.

    A model and a copy of it would then disagree near the boundary, where minimal-norm attacks end, and images that are
    adversarial be lost: the network would look more robust than it is. What was set by PyTorch's fp32_precision stays.
    """
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    rounding = [each for each in backends if _rounds(each)]
    for each in rounding:
        each.allow_tf32 = False
    try:
        yield
    finally:
        for each in rounding:
            each.allow_tf32 = True


def _rounds(backend: Any) -> bool:
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:  # fp32_precision was set for some operations, and this switch is out of use
        return False
