"""The comparison with other libraries: what it asks, judges and refuses, and that a missing library stops nothing."""

import json
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # where a script finds its neighbours
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "attacks.py"))
GENERATE = runpy.run_path(str(ROOT / "docs" / "performance.py"))


class Brightness(nn.Module):
    """Two classes: class 1 where the mean pixel is above a half."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.stack([torch.full((16,), -1 / 16), torch.full((16,), 1 / 16)]))
            self.linear.bias.copy_(torch.tensor([0.5, -0.5]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


@pytest.fixture
def given() -> tuple[nn.Module, Tensor, Tensor]:
    """Four images of class 0, of which an L-infinity budget of 0.2 flips those at 0.4, not those at 0.2."""
    images = torch.tensor([0.4, 0.4, 0.2, 0.2])[:, None, None, None].expand(4, 1, 4, 4).contiguous()
    return Brightness(), images, torch.zeros(4, dtype=torch.int64)


@dataclass
class Peer:
    """Answers in the place of a library's process."""

    library: str
    offer: dict[str, Any]
    answer: dict[str, Any]
    asked: list[tuple[str, bool]] = field(default_factory=list)

    def attack(self, name: str, *, trainable: bool) -> dict[str, Any]:
        self.asked.append((name, trainable))
        return self.answer


def offer(*names: str, slow: bool = False) -> dict[str, Any]:
    return {"version": "1", "attacks": {name: {"settings": "", "slow": slow} for name in names}}


@pytest.mark.parametrize("library", ["defendpp, prepared", "Foolbox"])
def test_a_library_answers_from_a_process_of_its_own(
    tmp_path: Path, given: tuple[nn.Module, Tensor, Tensor], library: str
) -> None:
    model, images, labels = given
    torch.save((BENCHMARK["graph"](model), images, labels), tmp_path / "given.pt")
    with BENCHMARK["Peer"](library, Path(sys.executable), tmp_path) as peer:
        assert {"BIM", "PGD", "C&W", "DDN"} <= set(peer.offer["attacks"])
        assert "KeyError" in peer.attack("none of that name", trainable=False)["error"]
        for trainable in (False, True):
            made = peer.attack("BIM", trainable=trainable)
            assert made["ratio"] > 0
            assert 40 <= made["passes"] <= 43
            torch.testing.assert_close(made["images"], images + 0.2)
    assert BENCHMARK["judged"](model, images, labels, made["images"], "BIM")["flipped"] == 0.5


def test_a_library_that_cannot_run_is_absent(tmp_path: Path) -> None:
    with BENCHMARK["Peer"]("torchattacks", tmp_path / "python", tmp_path) as peer:
        assert "No such file" in peer.offer["absent"]
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    with BENCHMARK["Peer"]("torchattacks", script, tmp_path) as peer:
        assert peer.offer == {"absent": "its process ended with status 3"}


def test_what_fails_is_recorded_and_the_rest_goes_on(given: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = given
    right = {"ratio": 2.0, "passes": 41.0, "images": images + 0.2}
    ours = Peer("defendpp, prepared", offer("BIM"), {**right, "ratio": 1.0})
    failing = Peer("Foolbox", offer("BIM"), {"error": "ValueError: no"})
    slow = Peer("ART", offer("C&W", slow=True), right)
    absent = Peer("torchattacks", {"absent": "No module named 'torchattacks'"}, right)
    rows = BENCHMARK["measure"]([ours, failing, slow, absent], model, images, labels, rounds=5)
    assert [
        (row["library"], row.get("error"), row["median"]) for row in sorted(rows, key=lambda row: row["library"])
    ] == [
        ("ART", None, 2.0),
        ("Foolbox", "ValueError: no", None),
        ("Foolbox", "ValueError: no", None),
        ("defendpp, prepared", None, 1.0),
    ]
    assert ours.asked == [("BIM", False)] * 5
    assert sorted(failing.asked) == [("BIM", False), ("BIM", True)]  # once each
    assert slow.asked == [("C&W", False)] * 2
    with pytest.raises(RuntimeError, match="our own attacks do not run: no"):
        BENCHMARK["measure"]([Peer("defendpp, eager", {"absent": "no"}, right)], model, images, labels, rounds=1)


def test_only_images_within_the_rules_count_as_flipped(given: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = given
    adversarial = images.clone()
    adversarial[0] += 0.2  # flipped, at a distance of 4 x 0.2
    adversarial[1] += 0.3  # flipped beyond the budget of 0.2
    adversarial[2] = 1.5  # no image
    adversarial[3] = torch.nan
    within = BENCHMARK["judged"](model, images, labels, adversarial, "PGD")
    assert within == {"flipped": 0.25, "median L2": None}  # more than half not reached
    anywhere = BENCHMARK["judged"](model, images[:2], labels[:2], adversarial[:2], "C&W")
    assert anywhere == {"flipped": 1.0, "median L2": pytest.approx(1.0)}
    assert BENCHMARK["judged"](model, images, labels, adversarial, "C&W")["flipped"] == 0.5
    assert BENCHMARK["judged"](model, images, labels, images, "C&W") == {"flipped": 0.0, "median L2": None}


def test_a_record_is_kept_and_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "attacks.json"
    path.write_text(json.dumps({"networks": {name: [] for name in ("undefended", "noise 0.5")}}))
    before = path.read_text()
    monkeypatch.setattr(sys, "argv", ["attacks.py", "--output", str(path), "--networks", str(tmp_path / "none")])
    BENCHMARK["main"]()
    assert path.read_text() == before
    assert "--again" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was made with images 32, not 128: --again"):
        BENCHMARK["check_same"]({"images": 32, "rounds": 5}, {"rounds": 5, "images": 128}, path)


def test_the_page_sets_ours_beside_each_library(tmp_path: Path) -> None:
    def row(library: str, median: float, **more: Any) -> dict[str, Any]:
        common = {"attack": "BIM", "library": library, "settings": f"{library}()", "trainable": False}
        numbers = {"ratios": [median], "median": median, "passes": 41.0, "flipped": 0.5, "median L2": 1.0}
        return {**common, **numbers, **more}

    rows = [
        row("ART", 1.25),
        row("ART", 2.0, trainable=True),
        {**row("Foolbox", 1.0), "ratios": [], "error": "ValueError: no"},
        row("defendpp, prepared", 0.5),
        row("defendpp, prepared", 0.25, attack="PGD, first success"),
    ]
    libraries = {"defendpp, prepared": "0.1.0", "Foolbox": "absent", "ART": "1.20"}
    about = {"versions": "torch", "machine": "x", "images": 8, "rounds": 1, "libraries": libraries}
    assert "Attacks" not in GENERATE["performance"](tmp_path)
    (tmp_path / "attacks.json").write_text(json.dumps({**about, "networks": {"undefended": rows}}))
    table = [line for line in GENERATE["performance"](tmp_path).splitlines() if line.startswith("| ")]
    assert table[1:] == [
        "| BIM | defendpp, prepared | 0.50 (0.50–0.50, 1 round) |  |  | 41 | 50.0 % | 1.00 |",
        "| BIM | Foolbox | failed: ValueError: no | | | | | |",
        "| BIM | ART | 1.25 (1.25–1.25, 1 round) | 0.40 | 2.00 (0.25) | 41 | 50.0 % | 1.00 |",
        "| PGD, first success | defendpp, prepared | 0.25 (0.25–0.25, 1 round) |  |  | 41 | 50.0 % | 1.00 |",
    ]
