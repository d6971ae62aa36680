"""Trained networks that come with the package, each a run folder with a model card, README.md, beside its weights.

`load_run("mnist-robust")` and every command that takes a run's folder take such a name where no folder is called so.
"""

import json
import shutil
from functools import cache, partial
from pathlib import Path

from defendpp.files import write_whole

FOLDER = Path(__file__).parent / "published"


def names() -> list[str]:
    """Those there are."""
    return sorted(path.parent.name for path in FOLDER.glob("*/run.json"))


def place(run: Path | str) -> Path:
    """The folder of a run, which may be the name of a published one."""
    folder = Path(run)
    return FOLDER / folder if not folder.exists() and str(run) in names() else folder


def of(recipe_hash: str) -> Path | None:
    """The folder of the published network of this recipe; None where there is none."""
    return _by_recipe(FOLDER).get(recipe_hash)


@cache
def _by_recipe(folder: Path) -> dict[str, Path]:
    """Read once: the cost of every job asks."""
    return {json.loads(path.read_text())["recipe_hash"]: path.parent for path in folder.glob("*/run.json")}


def copy(run: Path, folder: Path, name: str) -> None:
    """The weights and the result of a finished run in another folder, under this name; the result last."""
    about = json.dumps({**json.loads((run / "run.json").read_text()), "name": name}, indent=2) + "\n"
    for weights in run.glob("*.safetensors"):
        write_whole(folder / weights.name, partial(shutil.copyfile, weights))
    write_whole(folder / "run.json", lambda path: path.write_text(about))


def card(name: str) -> str:
    """The model card of a published network, in Markdown: data, recipe, figures, limits.

    Raises `ValueError` for a name that there is not.
    """
    if name not in names():
        raise ValueError(f"{name!r} is none of the published networks: {', '.join(names())}")
    return (FOLDER / name / "README.md").read_text(encoding="utf-8")
