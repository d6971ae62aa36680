import copy
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from examples import small_network
from torch import Tensor, nn

from defendpp.data import Data, batches, crop_and_flip, from_tensors
from defendpp.decoder import AutoEncoder, HourglassDecoder, PyramidDecoder
from defendpp.encoder import PrivateBlocks, find_blocks, tap
from defendpp.frequency import low_pass
from defendpp.objective import Defend, Terms, cross_entropy, reconstruction_terms
from defendpp.training import (
    DivergedError,
    Fitted,
    LearningRate,
    Phase,
    _derive,
    alternating,
    fit,
    joint,
    one_cycle,
    step_decay,
)

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def data() -> Data:
    """Stripes whose direction and place make the class: easy to learn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 4
    images = 0.2 * torch.rand(120, *SHAPE, generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[0, 7 * int(label) : 7 * int(label) + 5] += 0.7
    return from_tensors(images, labels)


def defend(classifier: nn.Module, noise: float = 0.3) -> Defend:
    blocks = find_blocks(classifier, SHAPE)
    private = PrivateBlocks(classifier, blocks, 2, SHAPE)
    auto_encoder = AutoEncoder(private, blocks[1], PyramidDecoder(blocks, SHAPE))
    return Defend(auto_encoder, blocks[:2], weights=(1, 0.01, 0.01), noise=noise)


def train(classifier: nn.Module, objective: Any, data: Data, folder: Path, **settings: Any) -> Fitted:
    defaults: dict[str, Any] = {
        "phases": joint(4), "learning_rate": one_cycle(0.05, epochs=4), "batch_size": 20, "progress": False,
        "accelerator": "cpu", "execution": "channels-last",
    }  # fmt: skip
    return fit(classifier, objective, data.train, data.validation, folder=folder, **{**defaults, **settings})


def test_learns_what_can_be_learned(data: Data, tmp_path: Path) -> None:
    classifier = small_network()
    fitted = train(classifier, cross_entropy, data, tmp_path, phases=joint(8), learning_rate=one_cycle(0.1, epochs=8))
    assert fitted.validation_accuracy == 1
    assert fitted.validation_images == len(data.validation)
    images, labels = data.test.batch(range(len(data.test)))
    assert (classifier(images).argmax(1) == labels).all()
    assert not classifier.training


def test_same_seed_same_weights_and_the_global_random_state_is_left_alone(data: Data, tmp_path: Path) -> None:
    weights = []
    for i, seed in enumerate([0, 0, 1]):
        torch.manual_seed(i)  # must not matter
        before = torch.get_rng_state()
        classifier = small_network()
        objective = defend(classifier)
        torch.set_rng_state(before)
        train(classifier, objective, data, tmp_path / str(i), phases=joint(2), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(torch.cat([p.detach().flatten() for p in classifier.parameters()]))
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(weights[0], weights[1])


class Killed(Exception):  # noqa: N818
    pass


EVERYTHING: dict[str, Any] = {
    "phases": alternating(1, auto_encoder_epochs=1, classifier_epochs=1, joint_epochs=2),
    "augment": crop_and_flip,
    "clip_norm": 0.5,
}


@pytest.mark.parametrize(
    ("killed_at", "settings"), [(1, {}), (7, {}), (8, {}), (9, {}), (15, {}), (6, EVERYTHING), (13, EVERYTHING)]
)
def test_killed_at_any_step_it_resumes_to_the_same_result(
    data: Data, tmp_path: Path, killed_at: int, settings: dict[str, Any]
) -> None:
    """4 epochs of 4 steps; the kill comes in any of them, or at an epoch's very first step."""
    whole = small_network()
    whole.insert(4, nn.Dropout(0.3))
    whole_objective = defend(whole)
    resumed = copy.deepcopy(whole)
    resumed_objective = defend(resumed)
    resumed_objective.load_state_dict(whole_objective.state_dict())
    start = copy.deepcopy((resumed.state_dict(), resumed_objective.state_dict()))
    expected = train(whole, whole_objective, data, tmp_path / "whole", **settings)

    calls = 0

    class Killing(nn.Module):
        def __init__(self, objective: nn.Module) -> None:
            super().__init__()
            self.inner = objective

        def forward(self, *batch: Any) -> Terms:
            nonlocal calls
            calls += 1
            if calls == killed_at:
                raise Killed
            terms: Terms = self.inner(*batch)
            return terms

    with pytest.raises(Killed):
        train(resumed, Killing(resumed_objective), data, tmp_path / "resumed", **settings)
    # A new process: everything starts from the initial weights again, only the folder is left.
    resumed.load_state_dict(start[0])
    resumed_objective.load_state_dict(start[1])
    fitted = train(resumed, Killing(resumed_objective), data, tmp_path / "resumed", **settings)

    assert (fitted.validation_accuracy, fitted.epoch) == (expected.validation_accuracy, expected.epoch)
    for ours, theirs in ((resumed, whole), (resumed_objective, whole_objective)):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    assert calls == killed_at + 16 - (killed_at - 1) // 4 * 4  # finished epochs are not repeated


def test_the_best_epoch_on_validation_is_kept(data: Data, tmp_path: Path) -> None:
    """The learning rate explodes in the last epoch, so that an earlier one is best."""
    classifier = small_network()
    fitted = train(
        classifier,
        cross_entropy,
        data,
        tmp_path,
        phases=joint(6),
        learning_rate=lambda epoch: 0.05 if epoch < 5 else 5.0,
    )
    logged = pd.read_csv(tmp_path / "logs" / "version_0" / "metrics.csv")["validation_accuracy"].dropna().to_list()
    assert len(logged) == 6
    assert fitted.epoch < 6
    assert fitted.validation_accuracy == pytest.approx(max(logged))
    images, labels = data.validation.batch(range(len(data.validation)))
    accuracy = (classifier(images).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(fitted.validation_accuracy)


def test_logs_are_csv_and_tensorboard_and_a_resumption_keeps_the_old_ones(data: Data, tmp_path: Path) -> None:
    classifier = small_network()
    start = copy.deepcopy(classifier.state_dict())
    for _ in range(2):
        classifier.load_state_dict(start)
        train(classifier, cross_entropy, data, tmp_path, phases=joint(1))
    for version in ("version_0", "version_1"):
        assert list((tmp_path / "logs" / version).glob("events.*"))
    assert (tmp_path / "logs" / "version_0" / "metrics.csv").stat().st_size > 0


def test_a_finished_training_is_read_and_one_of_other_settings_is_not_taken_for_it(data: Data, tmp_path: Path) -> None:
    classifier = small_network()
    objective = defend(classifier)
    first = train(classifier, objective, data, tmp_path, phases=joint(1))
    again = small_network()
    assert train(again, defend(again), data, tmp_path, phases=joint(1)) == first
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), classifier.parameters(), strict=True))
    with pytest.warns(UserWarning, match="began with other weights than this classifier's"):
        assert train(again, defend(again), data, tmp_path, phases=joint(1)) == first  # with what was trained
    flipped = from_tensors(data.train.batch(range(84))[0], torch.arange(84) % 4)
    with pytest.raises(ValueError, match="another setting of images"):
        train(classifier, objective, flipped, tmp_path, phases=joint(1))
    others: list[tuple[dict[str, Any], Any, str]] = [
        ({"phases": joint(2)}, objective, "phases"),
        ({"seed": 1}, objective, "seed"),
        ({"learning_rate": lambda _: 0.01}, objective, "learning rates"),
        ({"clip_norm": 1.0}, objective, "gradient norm"),
        ({}, defend(classifier, noise=0.4), "objective"),
        ({}, partial(cross_entropy, noise=0.1), "objective"),
    ]
    for settings, other, name in others:
        with pytest.raises(ValueError, match=f"the checkpoint to resume from has another setting of {name}"):
            train(classifier, other, data, tmp_path, **{"phases": joint(1), **settings})


@pytest.mark.parametrize("more", [0, 1])
def test_the_number_of_threads_is_told_where_it_is_one(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    here = torch.get_num_threads()
    steps = 0

    def killed_once(*batch: Any) -> Terms:
        nonlocal steps
        steps += 1
        if steps == 5:  # after the first epoch, of 4 steps
            raise Killed
        return cross_entropy(*batch)

    with pytest.raises(Killed):
        train(small_network(), killed_once, data, tmp_path)
    # only said to be more: oneDNN crashes where their number really changes within a process
    monkeypatch.setattr(torch, "get_num_threads", lambda: here + more)
    fitted = train(small_network(), killed_once, data, tmp_path)
    assert fitted.threads == (None if more else here)
    monkeypatch.setattr(torch, "get_num_threads", lambda: here + 2)
    assert train(small_network(), killed_once, data, tmp_path) == fitted  # finished: it is read, and computes nothing


def test_a_schedule_for_fewer_epochs_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the learning rate is 0 in all of epoch 4, the last"):
        train(small_network(), cross_entropy, data, tmp_path / "run", learning_rate=one_cycle(0.05, epochs=1))
    assert not (tmp_path / "run").exists()


def test_what_the_classifier_cannot_take_is_told_before_any_step(data: Data, tmp_path: Path) -> None:
    wrong: list[tuple[nn.Module, str]] = [
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), "the classifier has 3 outputs, but there are labels up to 3"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.Softmax(1)),
            "the classifier must give logits, not probabilities",
        ),
        (nn.Conv2d(2, 4, 3), "the classifier cannot take images of shape"),
        (nn.Conv2d(1, 4, 3), r"logits of shape \(batch, classes\), not \(2, 4, 26, 26\)"),
    ]
    for classifier, problem in wrong:
        with pytest.raises(ValueError, match=problem):
            train(classifier, cross_entropy, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_in_a_log_a_resumption_says_where_it_goes_on(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = small_network()
    start = copy.deepcopy(classifier.state_dict())
    train(classifier, cross_entropy, data, tmp_path)
    classifier.load_state_dict(start)
    train(classifier, cross_entropy, data, tmp_path, progress=True)
    assert capsys.readouterr().err == f"the training in {tmp_path} was finished: its result is read\n"


def test_a_loss_that_is_not_finite_stops_the_run_with_a_clear_message(data: Data, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"not finite in epoch 1 after \d+ steps \(classification .*lower learning"):
        train(small_network(), cross_entropy, data, tmp_path, learning_rate=lambda _: 1e20)


def test_alternating_learning_is_training_two_networks_and_copying_the_encoder(data: Data, tmp_path: Path) -> None:
    """The paper's procedure written out: two networks, each with its own optimiser, and copies between the phases."""
    phases = alternating(2, auto_encoder_epochs=1, classifier_epochs=1, joint_epochs=0)
    classifier = small_network()
    blocks = find_blocks(classifier, SHAPE)

    def rebuild(network: nn.Module, decoder: nn.Module, images: Tensor) -> Any:
        with tap(network, blocks) as maps:
            network(images)
        return decoder(maps)

    private = PrivateBlocks(classifier, blocks, 3, SHAPE)
    torch.manual_seed(0)
    decoder = HourglassDecoder(blocks, SHAPE)
    objective = Defend(AutoEncoder(private, blocks[2], copy.deepcopy(decoder)), blocks, weights=(1, 0.01, 0.01))
    other_classifier, auto_encoder = copy.deepcopy(classifier), copy.deepcopy(classifier)
    fitted = train(classifier, objective, data, tmp_path, phases=phases, learning_rate=lambda _: 0.05)

    after = []
    for epoch in range(4):
        network = (auto_encoder, other_classifier)[epoch % 2]
        network.train()
        decoder.train()
        parameters = [*network.parameters(), *(decoder.parameters() if epoch % 2 == 0 else ())]
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
        order = torch.Generator().manual_seed(_derive(0, epoch))
        for images, labels in batches(data.train, 20, generator=order, drop_last=True):
            if epoch % 2 == 0:
                terms = reconstruction_terms(rebuild(network, decoder, images), low_pass(images, 3), (1, 0.01, 0.01))
            else:
                terms = cross_entropy(network, images, labels)
            optimizer.zero_grad()
            torch.stack([*terms.values()]).sum().backward()
            optimizer.step()
        other = (other_classifier, auto_encoder)[epoch % 2]
        other[:3].load_state_dict(network[:3].state_dict())  # the copy of the encoder
        after.append({name: tensor.clone() for name, tensor in other_classifier.state_dict().items()})
    assert fitted.epoch == 4  # so that there were three copies
    kept = after[fitted.epoch - 1]
    for name, tensor in classifier.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-6, rtol=1e-5, msg=name)


def test_the_way_that_was_chosen_is_kept_when_training_resumes(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = small_network()
    train(classifier, cross_entropy, data, tmp_path, phases=joint(1), execution="eager")
    monkeypatch.setattr("defendpp.training.fastest", pytest.fail)
    assert train(small_network(), cross_entropy, data, tmp_path, phases=joint(1), execution="auto").execution == "eager"
    with pytest.raises(ValueError, match="another setting of execution"):
        train(small_network(), cross_entropy, data, tmp_path, phases=joint(1), execution="channels-last")


TWO_PROCESSES = """
import sys
from functools import partial
from pathlib import Path
import torch
from torch import nn
from defendpp.data import from_tensors
from defendpp.objective import cross_entropy
from defendpp.training import fit, is_main_process, joint, one_cycle

devices, folder, normalised = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "normalised"
torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
data = from_tensors(torch.rand(400, 1, 12, 12, generator=generator), torch.arange(400) % 4)
norm = nn.BatchNorm2d(8) if normalised else nn.Identity()
network = nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(800, 4))
fitted = fit(network, cross_entropy, data.train, data.validation, phases=joint(3), batch_size=8, progress=False,
             learning_rate=one_cycle(0.02, epochs=3), folder=folder, accelerator="cpu", devices=devices)
if is_main_process():
    torch.save({"weights": network.state_dict(), "accuracy": fitted.validation_accuracy}, folder / "result.pt")
"""


@pytest.mark.parametrize("normalised", [False, True])
def test_two_processes_train_the_network_that_one_trains(tmp_path: Path, normalised: bool) -> None:
    """The same losses in every step; batch statistics are each process's own, so there only about the same."""
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    for devices in ("1", "2"):
        command = [sys.executable, str(script), devices, str(tmp_path / devices), "normalised" if normalised else ""]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / devices / "result.pt", weights_only=True) for devices in ("1", "2"))
    losses = [pd.read_csv(tmp_path / d / "logs" / "version_0" / "metrics.csv")["loss"].dropna() for d in ("1", "2")]
    assert len(losses[0]) == len(losses[1]) > 3
    assert losses[0].to_numpy() == pytest.approx(losses[1].to_numpy(), rel=0.3 if normalised else 1e-4)
    if not normalised:
        assert one["accuracy"] == two["accuracy"]
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-4, atol=1e-5)


def test_phases() -> None:
    assert joint(3) == [Phase(3)]
    assert alternating(2, auto_encoder_epochs=4, classifier_epochs=2, joint_epochs=5) == [
        Phase(4, "reconstruction"),
        Phase(2, "classification"),
        Phase(4, "reconstruction"),
        Phase(2, "classification"),
        Phase(5),
    ]


def test_the_last_epoch_is_kept_where_it_is_asked_for(data: Data, tmp_path: Path) -> None:
    def learn_and_unlearn(classifier: nn.Module, images: Tensor, labels: Tensor) -> Terms:
        each = {name: (labels + shift) % 4 for name, shift in (("learn", 0), ("unlearn", 1))}
        return {name: cross_entropy(classifier, images, taught)["classification"] for name, taught in each.items()}

    found = {}
    for keep in ("best", "last"):
        settings = {"phases": [Phase(6, "learn"), Phase(2, "unlearn")], "learning_rate": lambda _: 0.05, "keep": keep}
        classifier = small_network()
        found[keep] = train(classifier, learn_and_unlearn, data, tmp_path / keep, **settings)
    assert found["best"].validation_accuracy > 0.5 > found["last"].validation_accuracy
    assert found["best"].epoch <= 6
    assert found["last"].epoch == 8


def test_step_decay_is_the_paper_s_schedule() -> None:
    rate = step_decay(0.01, every=100)
    assert [rate(epoch) for epoch in (0, 99.9, 100, 200, 249)] == pytest.approx([0.01, 0.01, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("schedule", "settings", "sentence"),
    [
        (one_cycle, {"peak": -1.0, "epochs": 2}, "peak must be above 0 and finite, not -1.0"),
        (one_cycle, {"peak": 0.1, "epochs": 0}, "epochs must be above 0 and finite, not 0"),
        (one_cycle, {"peak": 0.1, "epochs": 2, "warm_up": 1.0}, "warm_up is a share of the epochs .* not 1.0"),
        (step_decay, {"initial": 0.1, "every": 0}, "every must be above 0 and finite, not 0"),
        (step_decay, {"initial": math.nan, "every": 1}, "initial must be above 0 and finite, not nan"),
    ],
)
def test_a_schedule_that_is_none_is_refused(
    schedule: Callable[..., LearningRate], settings: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        schedule(**settings)


def test_one_cycle_rises_and_falls() -> None:
    rate = one_cycle(0.4, epochs=10, warm_up=0.25)
    assert [rate(epoch) for epoch in (0, 1.25, 2.5, 6.25, 10, 10.1)] == pytest.approx([0, 0.2, 0.4, 0.2, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phases": []}, "at least 1 epoch, not 0"),
        ({"batch_size": 1}, "at least 2, because of batch normalisation, not 1"),
        (
            {"devices": 3},
            "a batch of 20 cannot be shared out equally, at least 2 images each, among 3 devices on each of 1",
        ),
        ({"phases": [Phase(1, "nonsense")]}, "no term of the objective .classification. is one of .*'nonsense'"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    data: Data, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(small_network(), partial(cross_entropy, noise=0.1), data, tmp_path, **settings)
