from collections.abc import Sequence

import pytest
import torch

from defendpp.decoder import HourglassDecoder, PyramidDecoder
from defendpp.encoder import Block
from defendpp.frequency import scale_sizes


def blocks(*sizes: int, channels: Sequence[int] = (8, 12, 16, 20, 24)) -> list[Block]:
    return [Block(f"layer{i}", c, s, s) for i, (s, c) in enumerate(zip(sizes, channels, strict=False), 1)]


def maps(encoder: list[Block], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {b.name: torch.randn(4, b.channels, b.height, b.width, generator=generator) for b in encoder}


DECODERS = {
    "pyramid": PyramidDecoder,
    "hourglass": HourglassDecoder,
    "hourglass-SC": lambda b, s, m=None: HourglassDecoder(b, s, m, skip="concatenate"),
    "hourglass-SA": lambda b, s, m=None: HourglassDecoder(b, s, m, skip="add"),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("side", "encoder", "scales"),
    [
        (28, (14, 7, 4, 2), 3),  # every block halves
        (28, (28, 14, 7, 4), 3),  # stride-1 stem
        (32, (16, 8, 4, 2), 3),
        (32, (8, 4, 2, 1), 3),  # a stem that quarters, as ConvNeXt's
        (56, (28, 14, 7), 3),
        (28, (13, 5, 2), 3),  # convolutions without padding
    ],
)
def test_images_come_at_every_scale_and_every_parameter_is_trained(
    name: str, side: int, encoder: tuple[int, ...], scales: int
) -> None:
    decoder = DECODERS[name](blocks(*encoder), (3, side, side))  # type: ignore[operator]
    rebuilt = decoder(maps(blocks(*encoder)))
    assert [tuple(image.shape[-2:]) for image in rebuilt] == scale_sizes((side, side), scales)
    assert all(image.shape[:2] == (4, 3) for image in rebuilt)
    sum(image.square().sum() for image in rebuilt).backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_equation_2_each_scale_is_the_enlarged_smaller_one_plus_the_detail_of_its_map() -> None:
    encoder = blocks(28, 14, 7, 4)
    decoder = PyramidDecoder(encoder, (1, 28, 28)).eval()
    seen = maps(encoder)
    full, half, quarter = decoder(seen)
    torch.testing.assert_close(half, decoder.upsample[1](quarter) + decoder.detail[1](seen["layer2"]))
    torch.testing.assert_close(full, decoder.upsample[0](half) + decoder.detail[0](seen["layer1"]))


def test_a_scale_without_an_encoder_map_has_no_h_and_the_description_says_so() -> None:
    decoder = PyramidDecoder(blocks(14, 7, 4, 2), (1, 28, 28))
    assert [tapped and tapped.name for tapped in decoder.taps] == [None, "layer1"]
    assert str(decoder).splitlines() == [
        "pyramid decoder",
        "scale 0, 28x28: U alone, the encoder has no map of this size",
        "scale 1, 14x14: U + H on layer1 (8 x 14 x 14)",
        "scale 2, 7x7: 2 decoding blocks from layer4 (20 x 2 x 2)",
    ]


def test_the_deepest_stack_keeps_many_channels_until_the_smallest_image() -> None:
    """Section 3.3: upsample to a sensible size before reducing the channels."""
    decoder = PyramidDecoder(blocks(14, 7, 4, 2), (1, 28, 28))
    assert decoder.head[0].in_channels == 12  # the channels of the encoder's 7x7 map


def test_detail_of_a_map_reaches_only_the_larger_scales() -> None:
    encoder = blocks(28, 14, 7, 4)
    decoder = PyramidDecoder(encoder, (1, 28, 28)).eval()
    seen = maps(encoder)
    other = {**seen, "layer2": seen["layer2"] + 1}
    changed = [not torch.equal(a, b) for a, b in zip(decoder(seen), decoder(other), strict=True)]
    assert changed == [True, True, False]


@pytest.mark.parametrize(("skip", "uses"), [("none", False), ("add", True), ("concatenate", True)])
def test_hourglass_skips_read_the_encoder(skip: str, uses: bool) -> None:
    encoder = blocks(14, 7, 4)
    decoder = HourglassDecoder(encoder, (1, 28, 28), skip=skip).eval()
    seen = maps(encoder)
    other = {**seen, "layer1": seen["layer1"] + 1}
    assert torch.equal(decoder(seen)[0], decoder(other)[0]) is not uses
    assert ("layer1" in str(decoder)) is uses


@pytest.mark.parametrize("scales", [0, 5])
def test_scales_must_fit_between_image_and_bottleneck(scales: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 4 above a bottleneck of layer4.*not {scales}"):
        PyramidDecoder(blocks(14, 7, 4, 2), (1, 28, 28), scales)


def test_unknown_skip_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'both'"):
        HourglassDecoder(blocks(14, 7), (1, 28, 28), skip="both")


@pytest.mark.parametrize("name", DECODERS)
def test_training_is_stable_at_the_paper_s_learning_rate(name: str) -> None:
    """A first trial with linear outputs and no normalisation went to NaN at 0.1."""
    torch.manual_seed(0)
    encoder = blocks(14, 7, 4, 2, channels=(64, 128, 256, 512))
    decoder = DECODERS[name](encoder, (1, 28, 28))  # type: ignore[operator]
    seen = {tapped: features.relu() * 3 for tapped, features in maps(encoder).items()}
    target = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(decoder.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(25):
        loss = (decoder(seen)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[10:]) < losses[0]
    assert losses[-1] < 0.12
