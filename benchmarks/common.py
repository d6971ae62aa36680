"""What the benchmarks share: the networks that are attacked, the machine's description, and how records are written."""

import json
import platform
from pathlib import Path
from typing import Any

import torch

from defendpp.data import load
from defendpp.files import write_whole
from defendpp.recipe import Recipe
from defendpp.runs import Run, load_run, train

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
NETWORKS = Path("runs/benchmark")
"""Where the trained networks are kept from one benchmark to the next."""

UNDEFENDED = Recipe(width=16, epochs=7, learning_rate=0.2, batch_size=64, clip_norm=1.0)
RECIPES = {
    "undefended": UNDEFENDED,
    "noise 0.5": Recipe(width=16, epochs=7, learning_rate=0.2, batch_size=64, clip_norm=1.0, noise=0.5),
    "adversarially trained": Recipe(
        width=16, epochs=12, learning_rate=0.1, batch_size=64, clip_norm=1.0, defence="adversarial", attack_epsilon=0.2
    ),
}
"""ResNet-18 of width 16 on the embedded digits."""


def trained(name: str, folder: Path) -> Run:
    """The network of that name in `RECIPES`, trained where it is not in `folder` yet."""
    recipe = RECIPES[name]
    place = folder / recipe.hash
    if not (place / "classifier.safetensors").exists():
        train(recipe, load(recipe.data), place, accelerator="cpu")
    return load_run(place)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
    }


def write(content: Any, path: Path) -> None:
    """Write a record whole, also where its folder is not there yet."""
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text))
    print(f"written to {path}")
