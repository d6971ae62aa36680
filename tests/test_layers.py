"""Imports go one way, in the order that docs/design.md prints; `attacks` knows nothing of ours."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "defendpp"
DESIGN = Path(__file__).parent.parent / "docs" / "design.md"


def order() -> list[str]:
    tree = DESIGN.read_text().split("src/defendpp/\n")[1].split("```")[0]
    return [name.removesuffix("/").removesuffix(".py") for name in re.findall(r"^  (\S+)", tree, re.MULTILINE)]


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, at its head or later."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "defendpp":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("defendpp."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("defendpp.")}
    return names


def test_the_tree_in_the_design_is_the_tree_on_disk() -> None:
    present = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert set(order()) == present - {"__init__"}


def test_a_module_imports_only_from_those_above_it() -> None:
    places = {name: place for place, name in enumerate(order())}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imported(path) - {own}:
            assert places[name] < places[own], f"{own} imports {name}, which stands below it"
            assert own != "attacks"
