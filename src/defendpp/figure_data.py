"""The arrays behind the figures of the paper, small enough to be kept beside it; `figures` draws them without torch.

Each function returns named NumPy arrays for `numpy.savez_compressed`. Pictures of figures 5 and 7 are rounded to uint8,
which is what a screen shows, after everything that is measured on them; figure 2 has signed bands and overshoot and is
float16; distances are float32. Networks are run in eval mode where they are, and left in the modes they were in.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from defendpp.frequency import count_scales, dct2, laplacian_pyramid, low_pass
from defendpp.networks import evaluating, home
from defendpp.objective import Defend
from defendpp.threats import Attack

Arrays = dict[str, NDArray[Any]]

FLOOR = 1e-3
"""The smallest magnitude on a frequency map: what rounding pixels to 8 bits adds to every DCT coefficient."""


def frequencies(image: Float[Tensor, "channel height width"], scales: int | None = None) -> Arrays:
    """Figure 2: one image in [0, 1], its M low-pass images and its Laplacian pyramid, each with its frequency map.

    Returns `low_pass_m` (I^m) and `pyramid_m` (P^m of equation (1), the last I^{M-1}) as (channel, height, width) of
    scale m, in pixel units; and `low_pass_map_m`, `pyramid_map_m` of (height, width): log10 of the magnitude, at least
    `FLOOR`, of the orthonormal DCT of the channels' mean. All are float16 (relative error 2^-11). scales: M, by default
    the 7x7 rule. I^m has the brightness of the image (`frequency`), so its map is the top-left block of F, over 2^m.
    Compressed, an MNIST digit is 9 KB, an image of 3x32x32 21 KB; one of 3x224x224 would be 870 KB: reduce it first.

    ValueError for an image outside [0, 1].
    """
    low, high = (float(bound) for bound in image.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"the image must lie in [0, 1], but its values go from {low:g} to {high:g}")
    pixels = image.detach().cpu().double()[None]
    scales = count_scales((image.shape[1], image.shape[2])) if scales is None else scales
    arrays: Arrays = {}
    for name, levels in (("low_pass", low_pass(pixels, scales)), ("pyramid", laplacian_pyramid(pixels, scales))):
        for m, level in enumerate(levels):
            magnitude = dct2(level[0].mean(0)).abs().clamp_min(FLOOR).log10()
            arrays[f"{name}_{m}"] = level[0].half().numpy()
            arrays[f"{name}_map_{m}"] = magnitude.half().numpy()
    return arrays


def examples(
    model: nn.Module,
    images: Float[Tensor, "n channel height width"],
    labels: Int[Tensor, " n"],
    attacks: Sequence[Attack],
    seed: int = 0,
) -> Arrays:
    """Figure 5: images in [0, 1] and what each attack makes of them on `model`, white-box.

    Returns `clean` (n, channel, height, width) and `adversarial` (attack, n, channel, height, width) as uint8; `label`
    and `clean_prediction` (n), `prediction` (attack, n) as int64; `l2` and `linf` (attack, n), the distances from the
    clean images in pixel units, as float32; `attack` (attack), their names with budgets. Predictions and distances are
    those of the images before rounding. Every attack that draws random numbers starts from `seed`.

    ValueError without an image or an attack, and what the attacks raise.
    """
    if not attacks or not len(images):
        raise ValueError(f"examples need an image and an attack, not {len(images)} images and {len(attacks)} attacks")
    device = home(model)
    here, classes = images.to(device), labels.to(device)
    made = []
    for attack in attacks:
        random = {"generator": torch.Generator().manual_seed(seed)} if attack.is_random else {}
        made.append(attack.run(model, here, classes, **random).images)
    with evaluating(model):
        predicted = [model(each).argmax(1).cpu().numpy() for each in (here, *made)]
    change = [(each.cpu() - images.cpu()).flatten(1).double() for each in made]
    return {
        "clean": _to_bytes(images),
        "adversarial": np.stack([_to_bytes(each) for each in made]),
        "label": labels.cpu().numpy(),
        "clean_prediction": predicted[0],
        "prediction": np.stack(predicted[1:]),
        "l2": np.stack([each.norm(dim=1).float().numpy() for each in change]),
        "linf": np.stack([each.abs().amax(1).float().numpy() for each in change]),
        "attack": np.array([str(attack) for attack in attacks]),
    }


def reconstructions(
    classifier: nn.Module,
    objective: Defend,
    clean: Float[Tensor, "n channel height width"],
    adversarial: Float[Tensor, "n channel height width"],
) -> Arrays:
    """Figure 7: clean and adversarial images in [0, 1], and what the auto-encoder makes of both at full scale.

    Returns `clean`, `clean_reconstruction`, `adversarial` and `adversarial_reconstruction`, uint8 of the images' shape;
    reconstructions are clipped to [0, 1]. No noise is added, whatever the network was trained with.
    """
    with evaluating(classifier, objective):
        return {
            "clean": _to_bytes(clean),
            "clean_reconstruction": _to_bytes(_rebuild(classifier, objective, clean)),
            "adversarial": _to_bytes(adversarial),
            "adversarial_reconstruction": _to_bytes(_rebuild(classifier, objective, adversarial)),
        }


def removal(classifier: nn.Module, objective: Defend, pieces: Iterable[tuple[Tensor, Tensor]]) -> Arrays:
    """Figure 8: is what the auto-encoder makes of an attacked image nearer to the clean image than to the attacked one?

    `pieces` are pairs of (clean, adversarial) images in [0, 1], each (n, channel, height, width); one is in memory at a
    time. Returns per image, over all pieces, in float32: `D_rc` and `D_ra`, the L2 distances from the reconstruction,
    clipped to [0, 1] as in figure 7, to the clean and to the attacked image (section 4.5); `R` = D_rc / D_ra; and
    `distance`, the L2 distance between these two, so that R can be judged.

    R < 1 if and only if less than half of the perturbation is left in the reconstruction: with r, c, a for the three
    images, <r - c, a - c> / |a - c|^2 = (1 + (D_rc^2 - D_ra^2) / distance^2) / 2 < 1/2. An auto-encoder that copies
    its input has D_ra = 0 and R infinite, so R < 1 shows that it does not copy. It does not show that the clean image
    comes back: a black picture, whatever the input, has R < 1 wherever the attack brightened the image, and any
    picture far from both has R near 1. Only D_rc < `distance` shows that rebuilding brought the image nearer to the
    clean one; on MNIST, setting pixels below 0.5 to 0 does that too: `D_tc` and `D_ta` are from the attacked image with
    these set to 0. And R says nothing of the class: the classifier
    never sees the reconstruction. Where the attack left the image alone, `distance` is 0 and R is 1.

    ValueError where the two images of a pair differ in shape, and where there is no image at all.
    """
    found: list[Float[Tensor, "5 n"]] = []
    for clean, adversarial in pieces:
        if clean.shape != adversarial.shape:
            raise ValueError(
                f"clean and adversarial images must have one shape, not {(*clean.shape,)} and {(*adversarial.shape,)}"
            )
        with evaluating(classifier, objective):  # not around the loop: the next piece may have yet to be attacked
            rebuilt = _rebuild(classifier, objective, adversarial)
            cut = adversarial * (adversarial >= 0.5)
            pairs = ((rebuilt, clean), (rebuilt, adversarial), (adversarial, clean), (cut, clean), (cut, adversarial))
            found.append(torch.stack([(a.cpu().double() - b.cpu()).flatten(1).norm(dim=1) for a, b in pairs]))
    if not sum(each.shape[1] for each in found):
        raise ValueError("the removal of a perturbation is measured on at least one image, but the pieces hold none")
    to_clean, to_attacked, distance, cut_to_clean, cut_to_attacked = torch.cat(found, dim=1)
    ratio = torch.where(to_clean == to_attacked, 1, to_clean / to_attacked)  # 1, not nan, where both are 0
    arrays = {
        "D_rc": to_clean, "D_ra": to_attacked, "R": ratio, "distance": distance,
        "D_tc": cut_to_clean, "D_ta": cut_to_attacked,
    }  # fmt: skip
    return {name: values.float().numpy() for name, values in arrays.items()}


def _rebuild(classifier: nn.Module, objective: Defend, images: Tensor) -> Tensor:
    _, rebuilt = objective.classify_and_rebuild(classifier, images.to(home(classifier)))
    return rebuilt[0].clamp(0, 1)


def _to_bytes(images: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = (255 * images.detach()).round().to(torch.uint8).cpu().numpy()
    return pixels
