"""Classifiers: their blocks, torchvision as oracle of our ResNets and VGG16, names, and weights on disk."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Generator, Tensor, nn

from defendpp.networks import Normalized, build, core, home, load_weights, save
from defendpp.networks.named import check_runs, replace_last_layer

OWN = ["resnet18", "resnet50", "vgg16"]


def block_sizes(classifier: nn.Module, image_size: int, channels: int = 1) -> list[tuple[int, int]]:
    """Channels and side of every block's output."""
    seen: list[tuple[int, int]] = []
    infos: Any = classifier.feature_info
    for info in infos:
        block = classifier.get_submodule(info["module"])
        block.register_forward_hook(lambda _, __, output: seen.append((output.shape[1], output.shape[2])))
    with torch.no_grad():
        classifier.eval()(torch.zeros(1, channels, image_size, image_size))
    assert [channels for channels, _ in seen] == [info["num_chs"] for info in infos]
    if math.log2(image_size).is_integer():
        assert [side for _, side in seen] == [max(1, image_size // info["reduction"]) for info in infos]
    return seen


@pytest.mark.parametrize(
    ("options", "image_size", "sides"),
    [
        ({"name": "resnet18"}, 28, [14, 7, 4, 2]),
        ({"name": "resnet18"}, 32, [16, 8, 4, 2]),
        ({"name": "resnet50"}, 32, [16, 8, 4, 2]),
        ({"name": "resnet18", "stem": "full"}, 28, [28, 14, 7, 4]),
        ({"name": "resnet50", "stem": "full"}, 32, [32, 16, 8, 4]),
        ({"name": "vgg16"}, 28, [14, 7, 4, 2, 1]),
        ({"name": "vgg16"}, 32, [16, 8, 4, 2, 1]),
        ({"name": "resnet18"}, 224, [112, 56, 28, 14]),
    ],
)
def test_blocks_halve_the_resolution(options: dict[str, Any], image_size: int, sides: list[int]) -> None:
    classifier = build(**options, classes=10, channels=1, image_size=image_size, width=2)
    expansion = 4 if options["name"] == "resnet50" else 1
    factors = [1, 2, 4, 8, 8][: len(sides)]
    assert block_sizes(classifier, image_size) == [
        (2 * factor * expansion, side) for factor, side in zip(factors, sides, strict=True)
    ]


@pytest.mark.parametrize(("name", "published"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_resnets_have_the_published_number_of_parameters(name: str, published: int) -> None:
    with torch.device("meta"):
        classifier = build(name, classes=1000, channels=3, image_size=224)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == published


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["halve", "full"])
def test_resnets_compute_what_torchvisions_do(name: str, stem: str, generator: Generator) -> None:
    ours = build(name, classes=7, channels=3, image_size=32, stem=stem)  # type: ignore[arg-type]
    theirs = torchvision.models.get_model(name, num_classes=7)
    theirs.maxpool = nn.Identity()
    if stem == "full":
        theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_vgg16_computes_what_torchvisions_does(generator: Generator) -> None:
    ours = build("vgg16", classes=10, channels=3, image_size=32)
    theirs = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    blocks = nn.Sequential(*(ours.get_submodule(f"block{number}") for number in range(1, 6)))
    weights = zip(theirs.state_dict(), blocks.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(weights))
    images = torch.rand(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(blocks.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", OWN)
def test_gradient_reaches_every_parameter(name: str, generator: Generator) -> None:
    classifier = build(name, classes=4, channels=1, image_size=28, width=4, dropout=0.5 if name != "vgg16" else 0.0)
    classifier(torch.rand(8, 1, 28, 28, generator=generator)).square().sum().backward()
    unreached = [name for name, p in classifier.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not unreached
    assert all(p.grad is not None and p.grad.any() for name, p in classifier.named_parameters() if "weight" in name)


@pytest.mark.parametrize("name", OWN)
def test_an_images_logits_do_not_depend_on_its_batch(name: str, generator: Generator) -> None:
    classifier = build(name, classes=4, channels=1, image_size=28, width=4).eval()
    images = torch.rand(3, 1, 28, 28, generator=generator)
    with torch.no_grad():
        alone = torch.cat([classifier(image[None]) for image in images])
        torch.testing.assert_close(classifier(images), alone)


def test_convolutions_start_he_normal() -> None:
    torch.manual_seed(0)
    weight = build("resnet18", classes=2, channels=1, image_size=28, width=32).state_dict()["layer4.0.conv1.weight"]
    assert weight.shape[:2] == (256, 128)
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)  # fan-out: channels out x 3 x 3
    standardised = weight.flatten() / weight.std()
    assert float((standardised.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.003)  # normal, not uniform


def test_vgg16_drops_units_only_while_training(generator: Generator) -> None:
    classifier = build("vgg16", classes=4, channels=1, image_size=28, width=4, dropout=0.9)
    images = torch.rand(4, 1, 28, 28, generator=generator)
    torch.manual_seed(0)
    head, features = classifier.get_submodule("head"), torch.rand(4, 32, generator=generator)
    assert not torch.equal(head(features), head(features))
    assert torch.equal(classifier.eval()(images), classifier(images))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("timm/resnet18", timm.models.resnet.ResNet),
        ("resnet10t", timm.models.resnet.ResNet),
        ("torchvision/resnet18", torchvision.models.ResNet),
        ("shufflenet_v2_x0_5", torchvision.models.ShuffleNetV2),
    ],
)
def test_other_libraries_networks_come_normalised(name: str, kind: type, generator: Generator) -> None:
    classifier = build(name, classes=5, channels=3, image_size=32)
    assert classifier.training
    classifier.eval()
    network = core(classifier)
    assert isinstance(classifier, Normalized)
    assert isinstance(network, kind)
    assert all(key.startswith("network.") for key in classifier.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=generator)
    by_hand = torchvision.transforms.functional.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), network.eval()(by_hand))


def test_timm_builds_gray_and_fixed_size_networks() -> None:
    gray = build("timm/resnet10t", classes=5, channels=1, image_size=28)
    assert core(gray) is gray
    vit = build("timm/vit_tiny_patch16_224", classes=5, channels=3, image_size=32)
    assert core(vit).get_parameter("pos_embed").shape[1] == 1 + (32 // 16) ** 2


def test_a_pretrained_head_is_replaced_only_for_other_classes() -> None:
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    head = network.fc
    replace_last_layer(network, "net", 10)
    assert network.fc is head
    replace_last_layer(network, "net", 3)
    assert network.fc.out_features == 3
    with pytest.raises(ValueError, match="net ends with Conv2d, expected Linear"):
        replace_last_layer(nn.Sequential(nn.Conv2d(1, 1, 1)), "net", 3)


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_weights_that_cannot_be_fetched_are_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(FileNotFoundError, match=f"weights of {name} cannot be had \\(no route\\)"):
        build(name, classes=10, channels=3, image_size=32, pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet81"}, "'resnet81' is no network of defendpp, timm or torchvision; did you mean resnet18"),
        ({"name": "timm/resnet1"}, "'timm/resnet1' is no network of timm; did you mean"),
        ({"name": "keras/resnet18"}, "names the library 'keras', expected timm or torchvision"),
        ({"classes": 1}, "classes is 1, expected at least 2"),
        ({"width": 0}, "width is 0, expected at least 1"),
        ({"stem": "none"}, "stem is 'none', expected 'halve' or 'full'"),
        ({"name": "vgg16", "dropout": 1.0}, "dropout is 1.0, expected 0 or more"),
        ({"name": "vgg16", "stem": "full"}, "vgg16 does not have the option stem"),
        ({"name": "timm/resnet18", "width": 16}, "timm/resnet18 does not have the option width"),
        ({"name": "resnet18", "dropout": 0.1}, "resnet18 does not have the option dropout"),
        ({"name": "resnet18", "pretrained": True}, "resnet18 does not have the option pretrained"),
        ({"name": "torchvision/resnet18", "channels": 1}, "takes images of 3 channels, not 1"),
        ({"name": "torchvision/alexnet"}, "torchvision/alexnet does not take images of 3x16x16"),
    ],
)
def test_bad_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"name": "resnet18", "classes": 10, "channels": 3, "image_size": 16}
    unchecked = inspect.unwrap(build)  # as users run it: without the types of the arguments checked before us
    with pytest.raises(ValueError, match=message):
        unchecked(**(usual | options))


def test_a_network_that_returns_no_logits_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ValueError, match="pair returns tuple for two images"):
        check_runs(Pair(), "pair", 10, (3, 8, 8))
    with pytest.raises(ValueError, match=r"flat returns shape \(2, 192\)"):
        check_runs(nn.Flatten(), "flat", 10, (3, 8, 8))


def test_saved_weights_load_without_this_package(tmp_path: Path, generator: Generator) -> None:
    classifier = build("timm/resnet10t", classes=5, channels=3, image_size=32).eval()
    save(classifier, tmp_path / "new" / "weights.safetensors", {"recipe": "abc"})
    plain = timm.create_model("resnet10t", num_classes=5)
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "new" / "weights.safetensors"))
    images = torch.rand(2, 3, 32, 32, generator=generator)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()((images - mean) / std), classifier(images))


def test_weights_and_metadata_come_back(tmp_path: Path) -> None:
    first, second = (build("resnet18", classes=3, channels=1, image_size=28, width=2) for _ in range(2))
    first(torch.rand(4, 1, 28, 28))  # so that the running statistics differ, too
    save(first, tmp_path / "weights.safetensors", {"recipe": "abc"})
    assert load_weights(second, tmp_path / "weights.safetensors") == {"recipe": "abc"}
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].register_parameter("weight", tied[0].get_parameter("weight"))
    save(tied, tmp_path / "tied.safetensors")
    fresh = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_weights(fresh, tmp_path / "tied.safetensors")
    assert torch.equal(fresh.get_parameter("1.weight"), tied.get_parameter("0.weight"))


def test_saving_overwrites_only_when_told_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    network = nn.Linear(2, 2)
    save(network, path)
    before = path.read_bytes()
    nn.init.zeros_(network.weight)
    with pytest.raises(FileExistsError, match=r"exists already; pass overwrite=True"):
        save(network, path)
    with pytest.raises(TypeError):
        save(network, path, {"number": 1}, overwrite=True)  # type: ignore[dict-item]

    def interrupted(_: object, temporary: Path, __: object) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(network, path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    save(network, path, overwrite=True)
    assert path.read_bytes() != before


def test_weights_that_do_not_fit_are_one_sentence_and_change_nothing(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    for other, message in (
        (nn.Sequential(nn.Linear(2, 2)), "lacks 1.bias and 1 more"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 1)), "has the unknown 2.bias and 1 more"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4)), r"its 1\.\w+ has the shape \[4.*\], expected \[3"),
    ):
        save(other, path, overwrite=True)
        with pytest.raises(ValueError, match=message):
            load_weights(network, path)
    torch.save(network.state_dict(), path)
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_weights(network, path)
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_weights(network, tmp_path / "absent")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_network_without_weights_lives_where_its_buffers_are() -> None:
    network = nn.Module()
    assert home(network) == torch.device("cpu")
    network.register_buffer("mean", torch.zeros(1, device="meta"))
    assert home(network) == torch.device("meta")
