"""Files are written whole or not at all, and named by what determines them."""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

ENDING = ".partial"
"""Of files that are being written; one that is left over is of no value."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under another name beside `path`, and rename it to `path` once it is complete.

    Raises `OSError` where that fails, as safetensors' own error too, and what else `write` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{ENDING}")
    try:
        write(partial)
        partial.replace(path)
    except SafetensorError as problem:  # which is no OSError: a full disk
        raise OSError(f"{path} could not be written: {problem}") from problem
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Named NumPy arrays, compressed, as `numpy.load` reads them."""
    import numpy as np

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # given a name, NumPy would append its own ending
            np.savez_compressed(file, **arrays)

    write_whole(path, write)


def short_hash(parts: Any) -> str:
    """Twelve hexadecimal digits that tell what JSON can hold from anything else; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
