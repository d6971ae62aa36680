"""Time training steps: Defend++ and adversarial training as multiples of plain training, and each way of computing.

    python benchmarks/training.py                     # on an idle machine, with `pip install -e .`

A step is forward, backward and update of ResNet-18 on one batch of random images. One round measures every step once,
in an order of its own; figures are the median and the range over the rounds of ratios taken within a round.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import RESULTS, machine, write
from torch import Tensor, nn

from defendpp import networks, threats
from defendpp.execution import Execution, arrange, executed
from defendpp.frequency import low_pass
from defendpp.objective import Objective, Terms, adversarial_cross_entropy, cross_entropy, defend

EPSILON = 0.2

Step = Callable[[], float]
"""Takes one training step; the seconds it took."""


def bare_pgd(classifier: nn.Module, images: Tensor, labels: Tensor) -> Terms:
    """PGD-7 as it is usually written: seven gradients, nothing else; the least that adversarial training can cost."""
    x = (images + EPSILON * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(7):
        x = x.detach().requires_grad_()
        loss = nn.functional.cross_entropy(classifier(x), labels)
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x + EPSILON / 4 * gradient.sign()).clamp(images - EPSILON, images + EPSILON).clamp(0, 1)
    return {"adversarial": nn.functional.cross_entropy(classifier(x.detach()), labels)}


def objectives(shape: tuple[int, int, int]) -> dict[str, Callable[[nn.Module], Objective]]:
    """What is trained on, each built for a classifier."""

    def always(objective: Objective) -> Callable[[nn.Module], Objective]:
        return lambda _classifier: objective

    decoders = ("pyramid", "hourglass", "hourglass-sc", "hourglass-sa")
    return {
        "plain": always(cross_entropy),
        "noise": always(partial(cross_entropy, noise=0.5)),
        **{f"Defend++, {name}": partial(defend, image_shape=shape, decoder=name) for name in decoders},
        "Defend++, pyramid, noise": partial(defend, image_shape=shape, noise=0.5),
        "Adv. FGSM, half clean": always(
            partial(adversarial_cross_entropy, attack=threats.fgsm(EPSILON), clean_weight=0.5)
        ),
        "Adv. PGD-7": always(partial(adversarial_cross_entropy, attack=threats.pgd(EPSILON, steps=7))),
        "Adv. PGD-7, bare loop": always(bare_pgd),
        "Adv. DDN-20": always(partial(adversarial_cross_entropy, attack=threats.ddn(steps=20), max_norm=2.4)),
    }


def stepper(
    make: Callable[[nn.Module], Objective],
    way: Execution,
    batch: tuple[Tensor, Tensor],
    width: int,
) -> Step:
    """A network of its own with an optimiser, and its step."""
    shape = batch[0].shape[1:]
    torch.manual_seed(0)
    stem: Any = "halve" if shape[1] == 28 else "full"
    classifier = networks.build("resnet18", classes=10, channels=shape[0], image_size=shape[1], width=width, stem=stem)
    objective = make(classifier)
    both = nn.ModuleList([classifier, *([objective] if isinstance(objective, nn.Module) else [])])
    arrange(both, way)
    optimizer = torch.optim.SGD(both.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    computed = executed(objective, way)

    def step() -> float:
        started = time.perf_counter()
        loss = torch.stack([*computed(classifier, *batch).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def interleaved(steps: dict[str, Step], rounds: int, reference: str) -> dict[str, Any]:
    """For each step its seconds and its ratios to the reference of the same round; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(list(steps), len(steps)):
            seconds[name].append(steps[name]())
        print(f"round {number}/{rounds}", {name: round(1000 * each[-1]) for name, each in seconds.items()}, flush=True)
    return {
        name: {
            "milliseconds": round(1000 * statistics.median(each[1:]), 2),
            "ratios": [round(one / base, 4) for one, base in zip(each[1:], seconds[reference][1:], strict=True)],
        }
        for name, each in seconds.items()
    }


def measure(width: int, shape: tuple[int, int, int], batch_size: int, rounds: int) -> dict[str, Any]:
    """All figures for one network and image size."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(batch_size, *shape, generator=generator), torch.arange(batch_size) % 10
    every = objectives(shape)
    ways: tuple[Execution, ...] = ("eager", "channels-last", "bfloat16")
    by_way = {
        f"{name} | {way}": stepper(every[name], way, batch, width)
        for way in ways
        for name in ("plain", "Defend++, pyramid")
    }
    executions = interleaved(by_way, rounds, "plain | eager")
    for way in ways:
        plain, hardened = executions[f"plain | {way}"], executions[f"Defend++, pyramid | {way}"]
        hardened["to plain, the same way"] = [
            round(h / p, 4) for h, p in zip(hardened["ratios"], plain["ratios"], strict=True)
        ]
    by_name = {name: stepper(make, "channels-last", batch, width) for name, make in every.items()}

    def targets() -> float:
        started = time.perf_counter()
        low_pass(batch[0], 3)
        return time.perf_counter() - started

    by_name["low-pass targets alone"] = targets
    return {
        "network": f"ResNet-18, width {width}, batches of {batch_size} images of {'x'.join(map(str, shape))}",
        "executions": executions,
        "objectives": interleaved(by_name, rounds, "plain"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    made: dict[str, Any] = {
        **machine(),
        "rounds": arguments.rounds,
        "networks": [],
    }
    for width, shape, batch_size in ((16, (1, 28, 28), 64), (64, (1, 28, 28), 128), (64, (3, 32, 32), 64)):
        made["networks"].append(measure(width, shape, batch_size, arguments.rounds))
        write(made, RESULTS / "training.json")


if __name__ == "__main__":
    main()
