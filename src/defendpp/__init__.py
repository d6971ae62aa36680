"""Harden an image classifier on clean images only, and measure honestly how much harder to fool it became.

The names below, in the order of the data's way. They are imported when first used, because torch takes seconds to
import and the command line should answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defendpp.adversarial_sets import Network, adversarial_set, network
    from defendpp.attacks import (
        AttackResult,
        auto_pgd,
        bim,
        carlini_wagner,
        cascade,
        ddn,
        fgsm,
        minimal_pgd,
        pgd,
        pixel_flips,
        prepare,
        square,
    )
    from defendpp.checks import Check, check
    from defendpp.data import Data, Images, from_tensors, load
    from defendpp.encoder import Block, find_blocks
    from defendpp.evaluation import evaluate
    from defendpp.networks import build
    from defendpp.objective import Defend, cross_entropy, defend
    from defendpp.published import card
    from defendpp.recipe import Recipe
    from defendpp.runs import Run, load_run, train
    from defendpp.training import alternating, fit, joint, one_cycle, step_decay

_HOME = {
    "data": ("Data", "Images", "from_tensors", "load"),
    "networks": ("build",),
    "encoder": ("Block", "find_blocks"),
    "objective": ("Defend", "cross_entropy", "defend"),
    "training": ("alternating", "fit", "joint", "one_cycle", "step_decay"),
    "recipe": ("Recipe",),
    "published": ("card",),
    "runs": ("Run", "load_run", "train"),
    "attacks": (
        "AttackResult",
        "auto_pgd",
        "bim",
        "carlini_wagner",
        "cascade",
        "ddn",
        "fgsm",
        "minimal_pgd",
        "pgd",
        "pixel_flips",
        "prepare",
        "square",
    ),
    "adversarial_sets": ("Network", "adversarial_set", "network"),
    "evaluation": ("evaluate",),
    "checks": ("Check", "check"),
}
_MODULES = ("attacks", "data", "encoder", "frequency", "networks", "records", "report", "threats", "training")

__all__ = [  # noqa: RUF022 - in the order of the data's way
    "Data", "Images", "from_tensors", "load",
    "build",
    "Block", "find_blocks",
    "Defend", "cross_entropy", "defend",
    "alternating", "fit", "joint", "one_cycle", "step_decay",
    "Recipe",
    "card",
    "Run", "load_run", "train",
    "AttackResult", "auto_pgd", "bim", "carlini_wagner", "cascade", "ddn", "fgsm", "minimal_pgd", "pgd",
    "pixel_flips", "prepare", "square",
    "Network", "adversarial_set", "evaluate", "network",
    "Check", "check",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"defendpp.{module}"), name)
    if name in _MODULES:
        return import_module(f"defendpp.{name}")
    raise AttributeError(f"module 'defendpp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
