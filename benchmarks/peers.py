"""One library's attacks on one network, timed in a process of their own; `attacks.py` starts it and asks.

    python benchmarks/peers.py LIBRARY FOLDER THREADS

A process each, because the libraries' dependencies exclude one another. This file needs only torch and the library, so
that any Python with these two can run it; ours is treated like the others. FOLDER holds what all are given, in
`given.pt`: the network as a torch.fx graph, images and labels. The first line put out says what the library offers;
each line put in names an attack, and is answered by its time as a multiple of steps x gradient unit, with its images
in `LIBRARY.pt`.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

EPSILON, STEP, STEPS = 0.2, 0.02, 40

seen: list[int] = []
"""Sizes of the batches that went through the network."""

# C&W: 100 gradient passes, 5 x 20 where there is a search. Ours has the learning rate that is its default; each other
# library the one with which it came closest on 32 validation images of the two networks: of 0.01, 0.15, 0.5 and 1, for
# ART, which searches along every step, of 0.01 and 0.15.


class Attack(NamedTuple):
    """One attack of a library, ready to run."""

    settings: str
    steps: int
    """Gradient passes that it is charged with."""
    run: Callable[[], Tensor]
    """The adversarial images."""
    slow: bool = False
    """Takes so much longer than its steps that few rounds must do."""


def defendpp(model: nn.Module, images: Tensor, labels: Tensor, *, prepared: bool) -> dict[str, Attack]:
    attacks = import_module("defendpp.attacks")
    target = attacks.prepare(model, images[:8]) if prepared else model
    if prepared:
        target.register_forward_hook(count)

    def attack(steps: int, name: str, /, **settings: Any) -> Attack:
        function = getattr(attacks, name)
        return Attack(_call(name, settings), steps, lambda: function(target, images, labels, **settings).images)

    linf = {"epsilon": EPSILON, "step_size": STEP, "steps": STEPS}
    return {
        "BIM": attack(STEPS, "bim", **linf),
        "PGD": attack(STEPS, "pgd", **linf),
        "PGD, first success": attack(STEPS, "pgd", **linf, stop_early=True),
        "C&W": attack(100, "carlini_wagner", search_steps=5, iterations=20, learning_rate=0.15, initial_constant=1.0),
        "DDN": attack(100, "ddn", steps=100, levels=None),
    }


def foolbox(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Attack]:
    library, attacks = import_module("foolbox"), import_module("foolbox.attacks")
    target = library.PyTorchModel(model, bounds=(0, 1), device="cpu")

    def attack(steps: int, epsilons: float | None, name: str, /, **settings: Any) -> Attack:
        made = getattr(attacks, name)(**settings)
        return Attack(_call(name, settings), steps, lambda: made(target, images, labels, epsilons=epsilons)[1])

    linf = {"abs_stepsize": STEP, "steps": STEPS}
    return {
        "BIM": attack(STEPS, EPSILON, "LinfBasicIterativeAttack", **linf, random_start=False),
        "PGD": attack(STEPS, EPSILON, "LinfProjectedGradientDescentAttack", **linf),
        "C&W": attack(
            100,
            None,
            "L2CarliniWagnerAttack",
            binary_search_steps=5,
            steps=20,
            stepsize=0.5,
            initial_const=1.0,
            abort_early=False,
        ),
        "DDN": attack(100, None, "DDNAttack", steps=100),
    }


def torchattacks(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Attack]:
    library = import_module("torchattacks")

    def attack(steps: int, name: str, /, **settings: Any) -> Attack:
        made = getattr(library, name)(model, **settings)
        return Attack(_call(name, settings), steps, lambda: made(images, labels))

    linf = {"eps": EPSILON, "alpha": STEP, "steps": STEPS}
    return {
        "BIM": attack(STEPS, "BIM", **linf),
        "PGD": attack(STEPS, "PGD", **linf),
        "C&W": attack(100, "CW", c=1, steps=100, lr=0.5),  # it has no search for c, and stops where its cost rises
    }


def art(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Attack]:
    attacks = import_module("art.attacks.evasion")
    classes = len(model(images[:1])[0])
    target = import_module("art.estimators.classification").PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), classes, clip_values=(0, 1), device_type="cpu"
    )
    x, y = images.numpy(), labels.numpy()

    def attack(steps: int, name: str, /, **settings: Any) -> Attack:
        made = getattr(attacks, name)(target, **settings, batch_size=len(x), verbose=False)
        return Attack(_call(name, settings), steps, lambda: torch.from_numpy(made.generate(x, y)))

    linf = {"eps": EPSILON, "eps_step": STEP, "max_iter": STEPS}
    carlini_wagner = attack(
        100, "CarliniL2Method", binary_search_steps=5, max_iter=20, learning_rate=0.15, initial_const=1.0
    )
    return {
        "BIM": attack(STEPS, "BasicIterativeMethod", **linf),
        "PGD": attack(STEPS, "ProjectedGradientDescent", **linf, num_random_init=1),
        "C&W": carlini_wagner._replace(slow=True),  # a search along every step, and a gradient for every class
    }


LIBRARIES: dict[str, tuple[str, Callable[..., dict[str, Attack]]]] = {
    "defendpp, prepared": ("defendpp", lambda *given: defendpp(*given, prepared=True)),
    "defendpp, eager": ("defendpp", lambda *given: defendpp(*given, prepared=False)),
    "Foolbox": ("foolbox", foolbox),
    "torchattacks": ("torchattacks", torchattacks),
    "ART": ("adversarial-robustness-toolbox", art),
}


def unit(model: nn.Module, images: Tensor, labels: Tensor, passes: int = 5) -> float:
    """Seconds of one forward and input-gradient pass."""
    started = time.perf_counter()
    for _ in range(passes):
        variable = images.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(variable), labels, reduction="sum")
        torch.autograd.grad(loss, variable)
    return (time.perf_counter() - started) / passes


def timed(attack: Attack, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, float, float]:
    """The adversarial images, the attack's time as a multiple of steps x unit, and forward passes for each image."""
    torch.manual_seed(0)
    before = unit(model, images, labels)
    seen.clear()
    started = time.perf_counter()
    adversarial = attack.run()
    seconds = time.perf_counter() - started
    passes = sum(seen) / len(images)
    around = (before + unit(model, images, labels)) / 2
    return adversarial.detach().clone(), seconds / (attack.steps * around), passes


def count(_module: nn.Module, _images: Any, logits: Tensor) -> None:
    """Forward hook that notes the size of a batch."""
    seen.append(len(logits))


def _call(name: str, settings: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in settings.items())})"


def main() -> None:
    library, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # of the libraries, about their own dependencies
    model, images, labels = torch.load(folder / "given.pt", weights_only=False)  # written by attacks.py a moment ago
    model.eval().requires_grad_(False)
    model.register_forward_hook(count)
    package, build = LIBRARIES[library]
    try:
        attacks = build(model, images, labels)
    except ImportError as problem:
        return answer(absent=str(problem))
    for attack in build(model, images[:2], labels[:2]).values():  # what is imported or made at first use is not timed
        with suppress(Exception):  # said when the attack is asked for
            attack.run()
    unit(model, images, labels)
    offered = {name: {"settings": each.settings, "slow": each.slow} for name, each in attacks.items()}
    answer(version=f"{version(package)} on torch {torch.__version__}", attacks=offered)
    for line in sys.stdin:
        asked = json.loads(line)
        model.requires_grad_(asked["trainable"]).zero_grad()
        try:
            adversarial, ratio, passes = timed(attacks[asked["attack"]], model, images, labels)
        except Exception as problem:  # one attack of a library that fails must not end the others
            answer(error=f"{type(problem).__name__}: {problem}")
            continue
        torch.save(adversarial, folder / f"{library}.pt")
        answer(ratio=ratio, passes=passes)


if __name__ == "__main__":
    main()
