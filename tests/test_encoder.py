import copy

import pytest
import timm
import torch
from examples import small_network
from torch import nn

from defendpp.encoder import Block, PrivateBlocks, find_blocks, tap


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_blocks_are_found_by_probing_and_the_head_is_left_out() -> None:
    assert find_blocks(small_network(), (1, 28, 28)) == [
        Block("0", 8, 14, 14),
        Block("1", 12, 7, 7),
        Block("2", 16, 4, 4),
    ]


def test_gates_with_global_pooling_do_not_end_the_encoder() -> None:
    class Gate(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gated: torch.Tensor = x * self.gate(x)
            return gated

    plain = small_network()
    gated = nn.Sequential(plain[0], Gate(8), plain[1], Gate(12), *plain[2:])
    assert [block.size for block in find_blocks(gated, (1, 28, 28))] == [(14, 14), (7, 7), (4, 4)]


def test_feature_info_of_timm_is_used_below_wrappers() -> None:
    network = nn.Sequential(nn.Identity(), timm.create_model("resnet18", num_classes=10, in_chans=1))
    blocks = find_blocks(network, (1, 32, 32))
    assert [block.name for block in blocks] == ["1.act1", "1.layer1", "1.layer2", "1.layer3", "1.layer4"]
    assert [block.height for block in blocks] == [16, 8, 4, 2, 1]


def test_blocks_can_be_named() -> None:
    assert [block.name for block in find_blocks(small_network(), (1, 28, 28), ["0.0", "1.0"])] == ["0.0", "1.0"]


@pytest.mark.parametrize(
    ("names", "message"), [(["nonsense"], "no submodule 'nonsense'"), (["0", "5"], "'5' puts out no feature map")]
)
def test_bad_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_blocks(small_network(), (1, 28, 28), names)


def test_a_plain_vision_transformer_is_refused() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=8, depth=2)
    with pytest.raises(ValueError, match="VisionTransformer has no resolution pyramid"):
        find_blocks(network, (3, 32, 32))


def test_maps_of_class_scores_are_no_part_of_the_pyramid(images: torch.Tensor) -> None:
    """SqueezeNet's head: scores at every place, rectified, then averaged."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(16, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*list(small_network())[:3], head)
    for bias in (1.0, -9.0):  # the scores of a black image are all 0 in the end
        with torch.no_grad():
            head.get_submodule("0").get_parameter("bias").fill_(bias)
        assert find_blocks(network, (1, 28, 28)) == find_blocks(small_network(), (1, 28, 28))
    alone = nn.Sequential(*list(small_network())[:2], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [block.name for block in find_blocks(alone, (1, 28, 28))] == ["0", "1"]  # nothing else of 7x7
    assert [block.name for block in find_blocks(network, (1, 28, 28), ["0", "1", "3.1"])] == ["0", "1", "3.1"]


def test_probing_and_tapping_leave_the_classifier_as_it_was(images: torch.Tensor) -> None:
    network = timm.create_model("resnet18", num_classes=10, in_chans=1)
    network.get_submodule("layer1").eval()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    graph = str(torch.fx.symbolic_trace(network).graph)

    blocks = find_blocks(network, (1, 28, 28))
    PrivateBlocks(network, blocks, 2, (1, 28, 28))
    with tap(network, blocks):
        pass

    assert type(network) is timm.models.ResNet
    assert [module.training for module in network.modules()] == modes
    assert str(torch.fx.symbolic_trace(network).graph) == graph
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_tapping_changes_no_output_and_hooks_are_removed_after_an_error(images: torch.Tensor) -> None:
    network = small_network().eval()
    blocks = find_blocks(network, (1, 28, 28))
    with tap(network, blocks) as maps:
        logits = network(images)
    assert torch.equal(logits, network(images))
    assert torch.equal(maps["1"], network[:2](images))
    with pytest.raises(RuntimeError), tap(network, blocks):
        network(images[:, :, :, 0])
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_private_blocks_compute_what_the_classifier_does_with_their_own_weights(
    images: torch.Tensor, shared: int
) -> None:
    network = small_network().eval()
    blocks = find_blocks(network, (1, 28, 28))
    private = PrivateBlocks(network, blocks, shared, (1, 28, 28)).eval()
    with tap(network, blocks) as maps:
        network(images)
    own = private(images, maps[blocks[shared - 1].name])
    assert list(own) == [block.name for block in blocks[shared:]]
    assert all(torch.equal(own[name], maps[name]) for name in own)
    expected = sum(p.numel() for block in blocks[shared:] for p in network.get_submodule(block.name).parameters())
    assert sum(p.numel() for p in private.parameters()) == expected
    shared_parameters = {id(p) for p in network.parameters()}
    assert not any(id(p) in shared_parameters for p in private.parameters())


def test_gradient_of_private_blocks_reaches_the_shared_blocks_and_no_others(images: torch.Tensor) -> None:
    network = small_network()
    blocks = find_blocks(network, (1, 28, 28))
    private = PrivateBlocks(network, blocks, 1, (1, 28, 28))
    with tap(network, blocks) as maps:
        network(images)
    private(images, maps["0"])["2"].square().sum().backward()
    assert network.get_parameter("0.0.weight").grad is not None
    assert network.get_parameter("1.0.weight").grad is None
    assert all(p.grad is not None for p in private.parameters())


@pytest.mark.parametrize("shared", [0, 4])
def test_number_of_shared_blocks_is_checked(shared: int) -> None:
    network = small_network()
    with pytest.raises(ValueError, match=f"between 1 and 3 for this network, not {shared}"):
        PrivateBlocks(network, find_blocks(network, (1, 28, 28)), shared, (1, 28, 28))
