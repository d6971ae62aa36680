"""How training steps are computed: memory layout, precision, compilation. The fastest way is found by measurement.

Each way adds to the one before: "eager" is PyTorch as it comes; "channels-last" lays out images and weights for
convolutions; "bfloat16" also computes forward passes under autocast; "compiled" also passes the objective through
torch.compile. The first two give the same numbers up to rounding; bfloat16 keeps weights, normalisation statistics and
losses in float32, but its gradients have 8 bits of mantissa.
"""

import time
from contextlib import AbstractContextManager
from statistics import median
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from defendpp.objective import Objective, Terms

Execution = Literal["eager", "channels-last", "bfloat16", "compiled"]
EXECUTIONS: tuple[Execution, ...] = get_args(Execution)

WORTH = 0.9
"""A way is preferred to a plainer one where it takes less than this share of its time: noise shall decide nothing."""
MEASURE_FROM = 60.0
"""Seconds of training from which measuring pays; a shorter one is "channels-last", and so the same every time."""
COMPILE_FROM = 1800.0
"""Seconds of training from which compiling, which takes a minute, is tried too."""


def arrange(module: nn.Module, execution: Execution) -> None:
    """Lay out the weights of `module` in place; their values stay."""
    channels_last = execution != "eager"
    module.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def executed(objective: Objective, execution: Execution) -> Objective:
    """`objective` computed this way; expects a classifier (and modules of its own) that went through `arrange`."""
    if execution == "eager":
        return objective
    computed = torch.compile(objective) if execution == "compiled" else objective

    def run(classifier: nn.Module, images: Tensor, labels: Tensor) -> Terms:
        images = images.contiguous(memory_format=torch.channels_last)
        with _precision(images.device.type, execution):
            terms = computed(classifier, images, labels)
        return {name: term.float() for name, term in terms.items()}

    return run


def fastest(
    module: nn.Module,
    objective: Objective,
    classifier: nn.Module,
    batch: tuple[Tensor, Tensor],
    *,
    steps: int,
    rounds: int = 3,
) -> tuple[Execution, dict[Execution, float]]:
    """The way to train `steps` steps in the shortest time, and the seconds of a step in each way that was tried.

    Measures forward and backward passes of `batch`, each way in turn. module: holds the classifier and the objective's
    own modules; its state and the random state are left as found, its gradients are dropped, its layout is "eager".
    """
    device = batch[0].device
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    seconds: dict[Execution, float] = {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seconds |= _measure(module, objective, classifier, batch, ["channels-last"], 1)
        if steps * seconds["channels-last"] > MEASURE_FROM:
            seconds = _measure(module, objective, classifier, batch, ["eager", "channels-last", "bfloat16"], rounds)
        if steps * min(seconds.values()) > COMPILE_FROM:
            seconds |= _measure(module, objective, classifier, batch, ["compiled"], rounds)
    arrange(module, "eager")
    module.load_state_dict(state)
    module.zero_grad(set_to_none=True)
    chosen = next(iter(seconds))
    for execution, each in seconds.items():
        if each < WORTH * seconds[chosen]:
            chosen = execution
    return chosen, seconds


def _measure(
    module: nn.Module,
    objective: Objective,
    classifier: nn.Module,
    batch: tuple[Tensor, Tensor],
    executions: list[Execution],
    rounds: int,
) -> dict[Execution, float]:
    ways: dict[Execution, Objective] = {each: executed(objective, each) for each in executions}
    seconds: dict[Execution, list[float]] = {each: [] for each in executions}
    for round_ in range(rounds + 1):  # the first warms up
        for execution, way in list(ways.items()):
            arrange(module, execution)
            started = _now(batch[0].device)
            try:
                torch.stack([*way(classifier, *batch).values()]).sum().backward()
            except RuntimeError:  # a device without bfloat16, a machine without a compiler
                if execution in ("eager", "channels-last") or round_ > 0:
                    raise
                del ways[execution], seconds[execution]
                continue
            seconds[execution].append(_now(batch[0].device) - started)
    return {each: median(measured[1:]) for each, measured in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _precision(device: str, execution: Execution) -> AbstractContextManager[object]:
    return torch.autocast(device, torch.bfloat16, enabled=execution in ("bfloat16", "compiled"))
