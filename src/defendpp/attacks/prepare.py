"""A classifier made fast to attack, which stays the classifier: the user's own model still has the last word."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.experimental import optimization

from defendpp.attacks.precision import exact_float32

TOLERANCE = 1e-3  # of the logits' range; folding changes float32 logits by about a thousandth of that


class Prepared(nn.Module):
    """A frozen copy of a classifier for gradient passes, beside the original, which attacks ask for the final check."""

    def __init__(
        self, original: nn.Module, fast: nn.Module, how: str, *, channels_last: bool, bfloat16: bool = False
    ) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple, so that it is no submodule: it is not moved, saved or trained here
        self.fast = fast
        self.how = how
        self.channels_last = channels_last
        self.in_bfloat16 = bfloat16

    @property
    def original(self) -> nn.Module:
        """The classifier that was prepared, untouched."""
        return self._original[0]

    def forward(self, images: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """The logits, equal to the original's up to rounding: by `bfloat16` to two or three digits."""
        if not self.in_bfloat16:
            return self.in_float32(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.in_float32(images)

    def in_float32(self, images: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """The logits at the precision of the images."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.fast(images)
        return logits


def prepare(
    model: nn.Module,
    images: Float[Tensor, "batch *shape"],
    *,
    fold: bool = True,
    compiled: bool = False,
    bfloat16: bool = False,
) -> Prepared:
    """`model` made fast to attack: a frozen copy in eval mode, in channels-last layout where images have channels.

    fold: fold batch normalisation into the convolutions and linear layers before it, where torch.fx can trace the
    model. compiled: pass the copy through torch.compile, which compiles for the first batch size, once more for all
    others, and again for a single image: about a minute each on a CPU, for nothing gained there. images: some on which
    the copy must give the original's logits up to rounding; otherwise, or where tracing fails, the copy is not folded.
    `how` of the result says what was done. The model itself is left as found.

    bfloat16: run the copy under autocast, for processors with bfloat16 arithmetic. Float64 stays as it is. Fixed-budget
    attacks take about six tenths of the time, and the model checks what they claim. Near the boundary, where
    minimal-norm attacks end, such claims are often false, so every one of their steps is judged by a forward pass of
    the copy in float32 and counts as two queries; on a CPU that takes back what the gradients save.

    Every attack takes the result in the model's place: the copy gives gradients, the model checks success.
    """
    if isinstance(model, Prepared):
        return model
    channels_last = images.ndim == 4
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    fast, how = (_folded(plain, images) if fold else None) or (plain, "not folded")
    if channels_last:
        fast = fast.to(memory_format=torch.channels_last)
        how += ", channels last"
    if compiled:
        fast, how = torch.compile(fast), how + ", compiled"  # type: ignore[assignment]
    if bfloat16:
        how += ", bfloat16"
    return Prepared(model, fast, how, channels_last=channels_last, bfloat16=bfloat16)


@torch.inference_mode(False)
@torch.no_grad()
@exact_float32()
def _folded(model: nn.Module, images: Tensor) -> tuple[nn.Module, str] | None:
    """A copy with its batch normalisation folded, or None where that cannot be done or gives other logits."""
    try:
        folded = optimization.fuse(fx.symbolic_trace(model), no_trace=True)
        expected, given = model(images), folded(images)
    except Exception:  # tracing runs the user's code on proxies, which can fail in any way; the plain copy then serves
        return None
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    agrees = given.shape == expected.shape and bool((given - expected).abs().max() <= TOLERANCE * scale)
    return (folded.requires_grad_(False), "batch normalisation folded") if agrees else None
