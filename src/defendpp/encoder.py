"""Find, tap and share the blocks of any classifier, without changing the classifier.

A block is a named submodule whose output is the deepest feature map of its resolution; the blocks in order are the
encoder. They are read ("tapped") by hooks during the classifier's own forward pass, so that one pass serves both the
classification and the reconstruction, and the classifier's class, parameter names and inference graph stay as they are.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from defendpp.networks import home

Images = Float[Tensor, "batch channel height width"]
Map = Float[Tensor, "batch _ _ _"]


@dataclass(frozen=True)
class Block:
    """A submodule of a classifier and the feature map that it puts out for one image."""

    name: str
    """The submodule's name, as in `classifier.named_modules()`."""
    channels: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the feature map."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.name} ({self.channels} x {self.height} x {self.width})"


def find_blocks(
    classifier: nn.Module, image_shape: tuple[int, int, int], names: Sequence[str] | None = None
) -> list[Block]:
    """The encoder of `classifier` for images of `image_shape` (channel, height, width): one block per resolution.

    Candidates are the submodules in `names`; else those in the `feature_info` that timm's models carry; else every
    submodule, tried on one blank image. Of those with the same resolution the deepest is taken.

    Raises `ValueError` where a name is no submodule or gives no feature map, and where fewer than two resolutions are
    found: a network without a resolution pyramid, such as a plain vision transformer, has nothing to tap.
    """
    modules = dict(classifier.named_modules())
    for name in names or ():
        if name not in modules or name == "":
            raise ValueError(f"the classifier has no submodule {name!r}; its submodules start with {_some(modules)}")
    candidates = list(names) if names else _feature_info(classifier)
    outputs = _probe(classifier, image_shape, candidates or [name for name in modules if name])
    if names:
        for name in names:
            if name not in outputs:
                raise ValueError(f"submodule {name!r} puts out no feature map of (batch, channel, height, width)")
    blocks = _deepest(outputs, image_shape)
    if not candidates:
        blocks = _drop_head(blocks)
        if blocks and _are_scores(classifier, image_shape, last := blocks[-1]):
            shape = (last.channels, *last.size)
            rest = {name: each for name, each in outputs.items() if each != shape}
            without = _drop_head(_deepest(rest, image_shape))
            blocks = without if len(without) == len(blocks) else blocks  # or there is no other map of their resolution
    if len(blocks) < 2:
        found = ", ".join(map(str, blocks)) or "no feature map"
        raise ValueError(
            f"{_title(classifier)} has no resolution pyramid (found {found}): Defend++ needs feature maps that shrink "
            "block by block, which a plain vision transformer's do not; if this network's do, name its blocks"
        )
    return blocks


@contextmanager
def tap(classifier: nn.Module, blocks: Sequence[Block]) -> Iterator[dict[str, Map]]:
    """Within this context every forward pass of `classifier` leaves the output of each block in the dict, by name."""
    maps: dict[str, Map] = {}

    def reader(name: str) -> Any:
        def read(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            maps[name] = output

        return read

    handles = [classifier.get_submodule(block.name).register_forward_hook(reader(block.name)) for block in blocks]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


class PrivateBlocks(nn.Module):
    """Private copies of the blocks of `classifier` after the first `shared`, for the auto-encoder alone.

    They are copied with their present weights and are trained apart. What runs before or after them in the classifier
    is cut from the copy, so that it costs neither time nor memory.
    """

    def __init__(self, classifier: nn.Module, blocks: Sequence[Block], shared: int, image_shape: tuple[int, int, int]):
        super().__init__()
        if not 1 <= shared <= len(blocks):
            raise ValueError(f"shared blocks must be between 1 and {len(blocks)} for this network, not {shared}")
        self.blocks = tuple(blocks[shared:])
        self.replay = _Replay()
        if self.blocks:
            self.copy = copy.deepcopy(classifier)
            spans = _spans(self.copy, image_shape)
            _cut(self.copy, "", spans, blocks[shared - 1].name, blocks[-1].name, self.replay)

    def forward(self, images: Images, last_shared: Map) -> dict[str, Map]:
        """The maps of the private blocks, by name; `last_shared` is the map of the last shared block."""
        if not self.blocks:
            return {}
        self.replay.map = last_shared
        with tap(self.copy, self.blocks) as maps:
            stop = self.copy.get_submodule(self.blocks[-1].name).register_forward_hook(_stop)
            try:
                self.copy(images)
            except _Stop:
                pass
            finally:
                stop.remove()
                self.replay.map = None
        return maps


class _Stop(Exception):  # noqa: N818 - not an error: ends the forward pass of a copy after its last block
    pass


def _stop(*_: Any) -> None:
    raise _Stop


class _Replay(nn.Module):
    """Stands in the copy for the last shared block: puts out the shared map, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.map: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Tensor:
        assert self.map is not None
        return self.map


class _Skip(nn.Module):
    """Stands in the copy for what runs before the private blocks."""

    def forward(self, first: Any, *_: Any, **__: Any) -> Any:
        return first


def _cut(
    module: nn.Module, path: str, spans: dict[str, tuple[int, int]], shared: str, last: str, replay: _Replay
) -> None:
    """Replace in `module` the shared block by `replay`, and all that runs before it or after the block `last`."""
    for name, child in list(module.named_children()):
        full = f"{path}{name}"
        span = spans.get(full)
        called_within = any(other.startswith(f"{full}.") for other in spans)
        if full == shared:
            setattr(module, name, replay)
        elif (span is None and not called_within) or (
            span is not None and (span[1] < spans[shared][0] or span[0] > spans[last][1])
        ):
            setattr(module, name, _Skip())
        else:
            _cut(child, f"{full}.", spans, shared, last, replay)


def _spans(classifier: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """When each submodule first starts and last ends in a forward pass, counted in module calls."""
    spans: dict[str, tuple[int, int]] = {}
    clock = iter(range(1_000_000_000))

    def start(name: str) -> Any:
        return lambda *_: spans.setdefault(name, (next(clock), -1)) and None

    def end(name: str) -> Any:
        return lambda *_: spans.update({name: (spans[name][0], next(clock))})

    handles = [
        handle
        for name, module in classifier.named_modules()
        if name
        for handle in (module.register_forward_pre_hook(start(name)), module.register_forward_hook(end(name)))
    ]
    try:
        _blank_pass(classifier, image_shape)
    finally:
        for handle in handles:
            handle.remove()
    return spans


def _probe(
    classifier: nn.Module, image_shape: tuple[int, int, int], names: Sequence[str]
) -> dict[str, tuple[int, int, int]]:
    """(channel, height, width) of the last output of each named submodule, in the order in which they finish.

    Outputs of a global pooling and what follows it belong to the head or, where maps of the former size come back, to a
    gate such as squeeze-and-excitation: neither is part of the pyramid.
    """
    shapes: dict[str, tuple[int, int, int]] = {}
    pooled_from = 0  # pixels of the map that went into the last adaptive pooling; 0 outside heads and gates

    def listen(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            nonlocal pooled_from
            if not isinstance(output, Tensor) or output.ndim != 4:
                return
            channels, height, width = output.shape[1:]
            if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
                pooled_from = inputs[0].shape[-2] * inputs[0].shape[-1]
            elif height * width >= pooled_from:
                pooled_from = 0
                shapes.pop(name, None)  # a module that runs twice counts where it ran last
                shapes[name] = (channels, height, width)

        return note

    handles = [classifier.get_submodule(name).register_forward_hook(listen(name)) for name in names]
    try:
        _blank_pass(classifier, image_shape)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _are_scores(classifier: nn.Module, image_shape: tuple[int, int, int], block: Block) -> bool:
    """Whether a map is of class scores, whose mean over the pixels is the logits: what is added to it comes out."""
    logits = _blank_pass(classifier, image_shape)
    if not isinstance(logits, Tensor) or logits.shape != (1, block.channels):
        return False
    added = torch.arange(1.0, 1 + block.channels).to(logits)
    handle = classifier.get_submodule(block.name).register_forward_hook(
        lambda _module, _inputs, output: output + added.view(1, -1, 1, 1)
    )
    try:
        moved = _blank_pass(classifier, image_shape)
    finally:
        handle.remove()
    return torch.allclose(moved - logits, added.expand_as(logits), rtol=1e-3)


@torch.no_grad()
def _blank_pass(classifier: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """What comes of a black image in eval mode; the modules' modes are left as found."""
    modes = {module: module.training for module in classifier.modules()}
    dtype = next(classifier.parameters(), torch.zeros(())).dtype
    try:
        return classifier.eval()(torch.zeros(1, *image_shape, dtype=dtype, device=home(classifier)))
    finally:
        for module, training in modes.items():
            module.training = training


def _feature_info(classifier: nn.Module) -> list[str]:
    """The submodules that a timm model names as the ends of its resolutions, with their names within `classifier`."""
    for prefix, module in classifier.named_modules():
        info = getattr(module, "feature_info", None)
        if info is not None:
            entries = info if isinstance(info, list) else [info[i] for i in range(len(info))]
            return [f"{prefix}.{entry['module']}" if prefix else str(entry["module"]) for entry in entries]
    return []


def _deepest(outputs: dict[str, tuple[int, int, int]], image_shape: tuple[int, int, int]) -> list[Block]:
    """The last map of each resolution, as far as resolutions shrink."""
    deepest: dict[tuple[int, int], Block] = {}
    for name, (channels, height, width) in outputs.items():
        if _same_aspect((height, width), image_shape[1:]):
            deepest = {size: block for size, block in deepest.items() if size[0] * size[1] > height * width}
            deepest[height, width] = Block(name, channels, height, width)
    return list(deepest.values())


def _drop_head(blocks: list[Block]) -> list[Block]:
    """Without a last map of 1x1 that no halving explains: a global pooling that is no pooling module."""
    if len(blocks) >= 2 and blocks[-1].size == (1, 1) and max(blocks[-2].size) > 2:
        return blocks[:-1]
    return blocks


def _same_aspect(size: tuple[int, int], image: tuple[int, ...]) -> bool:
    """Whether a map can be a shrunk image: tells (batch, channel, height, width) from other layouts."""
    shrink = [side / part for side, part in zip(image, size, strict=True)]
    return max(shrink) / min(shrink) < 2


def _title(classifier: nn.Module) -> str:
    """The class of the network itself, below wrappers that only hold it."""
    children = list(classifier.children())
    return _title(children[0]) if len(children) == 1 else type(classifier).__name__


def _some(names: Any) -> str:
    return ", ".join([name for name in names if name][:8])
