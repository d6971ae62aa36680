"""A classifier's weights as a safetensors file: the network alone, loadable without this package, never unpickled."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from defendpp.files import write_whole
from defendpp.networks.named import Normalized, core


def save(
    classifier: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None, *, overwrite: bool = False
) -> None:
    """Write the state dict of `core(classifier)`, with `metadata` in the file's header.

    The header also holds the `mean` and `std` of a `Normalized` classifier, as JSON: whoever loads the weights
    elsewhere has to normalise images by them.

    The file appears complete or not at all. Its folder is made if absent.

    Raises:
        FileExistsError: there is a file at `path` already, and overwrite is False.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; pass overwrite=True to replace it.")
    # Copies, since safetensors refuses tensors that share memory, as tied weights do.
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in core(classifier).state_dict().items()}
    about = dict(metadata or {})
    if isinstance(classifier, Normalized):
        about |= {name: json.dumps(getattr(classifier, name).flatten().tolist()) for name in ("mean", "std")}
    write_whole(path, lambda partial: safetensors.torch.save_file(state, partial, about))


def load_weights(classifier: nn.Module, path: str | Path) -> dict[str, str]:
    """Load weights that `save` wrote into a classifier of the same architecture, and return the file's metadata.

    The classifier is left as it was if anything does not fit.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is not safetensors, or its names or shapes are not the classifier's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file at {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict, not iterable)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}).") from error
    network = core(classifier)
    expected = network.state_dict()
    for what, names in (("lacks", expected.keys() - state.keys()), ("has the unknown", state.keys() - expected.keys())):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} does not fit this network: it {what} {min(names)}{others}.")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            found, wanted = list(tensor.shape), list(expected[name].shape)
            raise ValueError(f"{path} does not fit this network: its {name} has the shape {found}, expected {wanted}.")
    network.load_state_dict(state)
    return dict(metadata)


def fingerprint(classifier: nn.Module) -> str:
    """Twelve hexadecimal digits that tell two networks apart: a hash of modules, weights and buffers.

    What a module's `forward` computes is part of it only through the module's class and what it prints of itself.
    """
    digest = hashlib.sha256(repr(classifier).encode())
    for name, tensor in [*classifier.named_parameters(), *classifier.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
