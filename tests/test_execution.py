"""Every way of computing steps trains the same network, up to its precision; the fastest is found by measuring."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from examples import small_network
from torch import Tensor, nn

from defendpp import execution
from defendpp.execution import Execution, arrange, executed, fastest
from defendpp.objective import Terms, cross_entropy, defend

SHAPE = (3, 28, 28)


@pytest.fixture
def network() -> nn.Module:
    network = small_network()
    network.insert(0, nn.Conv2d(3, 1, 1))
    return network


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.rand(16, *SHAPE, generator=generator), torch.arange(16) % 10


def gradients(network: nn.Module, way: Execution, batch: tuple[Tensor, Tensor]) -> tuple[Terms, Tensor]:
    network = copy.deepcopy(network)
    torch.manual_seed(0)
    objective = defend(network, SHAPE, noise=0.3)
    both = nn.ModuleList([network, objective])
    arrange(both, way)
    torch.manual_seed(0)
    terms = executed(objective, way)(network, *batch)
    torch.stack([*terms.values()]).sum().backward()
    return terms, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize(("way", "tolerance"), [("channels-last", 1e-5), ("bfloat16", 0.05)])
def test_losses_and_gradients_are_those_of_eager(
    network: nn.Module, batch: tuple[Tensor, Tensor], way: Execution, tolerance: float
) -> None:
    """Noise included, which must fall on the same pixels in any layout."""
    expected, slopes = gradients(network, "eager", batch)
    terms, given = gradients(network, way, batch)
    for name, term in expected.items():
        assert terms[name].item() == pytest.approx(term.item(), rel=tolerance)
        assert terms[name].dtype == torch.float32
    assert (given - slopes).norm() < 5 * tolerance * slopes.norm()


def test_arranging_keeps_the_weights(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    arrange(network, "bfloat16")
    weight = network.get_parameter("2.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    arrange(network, "eager")
    assert all(tensor.is_contiguous() for tensor in network.state_dict().values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_short_training_is_not_measured(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    chosen, seconds = fastest(network, cross_entropy, network, batch, steps=10)
    assert chosen == "channels-last"
    assert list(seconds) == ["channels-last"]


def test_the_fastest_way_is_chosen_and_leaves_no_trace(
    network: nn.Module, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is counted in ticks that each way is given here, so that no machine decides."""
    cost = {"eager": 10.0, "channels-last": 8.0, "bfloat16": 7.5, "compiled": 1.0}
    clock = 0.0
    layouts = []

    def spend(objective: Any, way: Execution) -> Any:
        def run(*arguments: Any) -> Terms:
            nonlocal clock
            clock += cost[way]
            layouts.append(network.get_parameter("2.0.weight").is_contiguous(memory_format=torch.channels_last))
            return executed(objective, "eager")(*arguments)

        return run

    monkeypatch.setattr(execution, "executed", spend)
    monkeypatch.setattr(execution, "_now", lambda _device: clock)
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    objective = partial(cross_entropy, noise=0.1)
    chosen, seconds = fastest(network.train(), objective, network, batch, steps=100)
    assert chosen == "channels-last"  # bfloat16 gains less than a tenth
    assert seconds == {name: cost[name] for name in ("eager", "channels-last", "bfloat16")}
    assert True in layouts
    assert False in layouts
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert fastest(network, objective, network, batch, steps=1000)[0] == "compiled"  # two hours pay for it
    cost["bfloat16"] = 3.0
    assert fastest(network, objective, network, batch, steps=100)[0] == "bfloat16"


def test_a_way_that_the_machine_does_not_have_is_not_chosen(
    network: nn.Module, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(objective: Any, way: Execution) -> Any:
        def run(*arguments: Any) -> Terms:
            if way == "bfloat16":
                raise RuntimeError("the device does not support bfloat16")
            return executed(objective, way)(*arguments)

        return run

    monkeypatch.setattr(execution, "executed", refuse)
    monkeypatch.setattr(execution, "MEASURE_FROM", 0.0)
    chosen, seconds = fastest(network, cross_entropy, network, batch, steps=10)
    assert chosen != "bfloat16"
    assert set(seconds) == {"eager", "channels-last"}
