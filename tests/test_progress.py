"""Progress in a log: a line now and then, with the time left; nothing on standard output."""

from pathlib import Path

import pytest
import torch

from defendpp import progress
from defendpp.data import from_tensors
from defendpp.progress import EVERY, in_lines, spoken
from defendpp.recipe import Recipe
from defendpp.runs import train


@pytest.fixture
def clock() -> list[float]:
    """A time that tests set."""
    return [0.0]


def test_a_line_a_minute_with_the_time_left(clock: list[float]) -> None:
    said: list[str] = []
    tell = in_lines(said.append, clock=lambda: clock[0])
    tell("pgd on mine", 4000, 10_000)  # 4,000 before an interruption, so not of this pace
    clock[0] = EVERY / 2
    tell("pgd on mine", 4500, 10_000)
    assert said == []
    clock[0] = 2 * EVERY
    tell("pgd on mine", 5000, 10_000)
    assert said == ["pgd on mine: 5,000 of 10,000 images, about 10 min left"]
    clock[0] = 2.5 * EVERY
    tell("pgd on mine", 5500, 10_000)
    assert len(said) == 1


def test_each_piece_of_work_has_its_own_pace_and_short_ones_say_nothing(clock: list[float]) -> None:
    said: list[str] = []
    tell = in_lines(said.append, clock=lambda: clock[0])
    for i in range(5):
        clock[0] = i * 0.9 * EVERY
        tell(f"piece {i}", 100, 100)
    assert said == []
    clock[0] += EVERY
    tell("piece 4", 100, 100)  # nothing was done since
    tell("piece 5", 50, 300)
    clock[0] += EVERY
    tell("piece 5", 100, 300)
    assert said == ["piece 5: 100 of 300 images, about 4 min left"]


def test_a_log_gets_lines_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.bar() as tell:
        tell("fgsm on mine", 1, 3)
        tell("fgsm on mine", 2, 3)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "fgsm on mine: 2 of 3 images, about 0 min left\n")


def test_a_training_in_a_log_says_a_line_each_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = from_tensors(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 3)
    recipe = Recipe(data="tensors", width=4, epochs=2, batch_size=32)
    train(recipe, data, tmp_path / "run", execution="eager", accelerator="cpu")
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first.startswith("epoch 1/2: loss ")
    assert second.startswith("epoch 2/2: loss ")
    assert " %, about 0 min left" in second
    assert "epoch" not in out


def test_durations_are_spoken() -> None:
    assert spoken(61 * 60) == "1 h 1 min"
    assert spoken(125) == "2 min"
