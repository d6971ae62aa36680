"""The README's Python runs as it stands, and its numbers are those of the records."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_library_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "example"})
    shown = capsys.readouterr().out
    assert "pyramid decoder" in shown
    assert "| hardened |" in shown


def test_the_numbers_are_generated_from_the_records() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert generate["readme"](README.read_text()) == README.read_text(), "run python docs/generate.py"
    measured = runpy.run_path(str(ROOT / "docs" / "performance.py"))["performance"]()
    assert measured == (ROOT / "docs" / "performance.md").read_text(), "run python docs/performance.py"
    study = runpy.run_path(str(ROOT / "docs" / "study.py"))["page"]()
    assert study == (ROOT / "docs" / "study.md").read_text(), "run python docs/study.py"
    robust = runpy.run_path(str(ROOT / "docs" / "robustness.py"))["page"]()
    assert robust == (ROOT / "docs" / "robustness.md").read_text(), "run python docs/robustness.py"


def test_the_records_stay_small_and_hold_no_weights() -> None:
    kept = [each for each in (ROOT / "results").rglob("*") if each.is_file()]
    assert 0 < sum(each.stat().st_size for each in kept) < 30e6
    assert not [each for each in kept if each.suffix in (".safetensors", ".ckpt", ".pt")]
