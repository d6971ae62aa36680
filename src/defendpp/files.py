"""Files are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

ENDING = ".partial"
"""Of files that are being written; one that is left over is of no value."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under another name beside `path`, and rename it to `path` once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{ENDING}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
