"""Attacks as pure functions of (model, images, labels) to an `AttackResult`; budgets in pixel units of [0, 1].

| attack           | kind         | norm     | reference        |
|------------------|--------------|----------|------------------|
| `fgsm`           | fixed budget | Linf     | arXiv:1412.6572  |
| `bim`            | fixed budget | Linf, L2 | arXiv:1607.02533 |
| `pgd`            | fixed budget | Linf, L2 | arXiv:1706.06083 |
| `auto_pgd`       | fixed budget | Linf, L2 | arXiv:2003.01690 |
| `square`         | fixed budget | Linf     | arXiv:1912.00049 |
| `cascade`        | fixed budget | Linf, L2 | arXiv:2003.01690 |
| `pixel_flips`    | fixed budget | L2       | arXiv:1511.07528 |
| `carlini_wagner` | minimal norm | L2       | arXiv:1608.04644 |
| `ddn`            | minimal norm | L2       | arXiv:1811.09600 |
| `minimal_pgd`    | minimal norm | Linf     | arXiv:2102.12827 |

All take a classifier as it is, or made fast by `prepare`, whose original then checks every success.

Every attack leaves the model's weights, gradients and modes as it found them, and draws nothing from the global random
state (a model that draws random numbers in its own forward pass still does).
"""

from defendpp.attacks.auto_pgd import auto_pgd
from defendpp.attacks.carlini_wagner import carlini_wagner
from defendpp.attacks.cascade import cascade
from defendpp.attacks.ddn import ddn
from defendpp.attacks.engine import AttackResult
from defendpp.attacks.gradient_sign import bim, fgsm, pgd
from defendpp.attacks.minimal_pgd import minimal_pgd
from defendpp.attacks.pixel_flips import pixel_flips
from defendpp.attacks.prepare import Prepared, prepare
from defendpp.attacks.square import square

__all__ = [
    "AttackResult",
    "Prepared",
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
]
