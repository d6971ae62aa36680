"""Reports of small made-up records, whose every number is counted by hand or by another road."""

import base64
import io
import re
from html.parser import HTMLParser
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from record_rows import BUDGETS, N, rows
from rich.console import Console
from scipy.stats import binomtest

from defendpp import report

ODD = "noise & <b>flips</b> $5 | [x]"


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pd.concat(
        [
            rows("plain", "none", 40),
            rows("plain", "pgd", 12, epsilon=0.1),
            rows("plain", "pgd", 2, epsilon=0.2),
            rows("plain", "ddn", 0, norm="l2", distance=1.6),
            rows("other seed", "none", 39),
            rows("other seed", "bim", 21, epsilon=0.2, source="plain"),
            rows("other seed", "ddn", 38, norm="l2", source="plain"),
            rows(ODD, "none", 36),
            rows(ODD, "pgd", 30, epsilon=0.1),
            rows(ODD, "pgd", 24, epsilon=0.2),
            rows(ODD, "ddn", 0, norm="l2", distance=4.0),
            rows(ODD, "bim", 33, epsilon=0.2, source="plain"),
        ],
        ignore_index=True,
    )


def wilson(k: int, n: int = N) -> str:
    interval = binomtest(k, n).proportion_ci(method="wilson")
    digits = 0 if n < 1000 else 1
    return f"{100 * interval.low:.{digits}f}–{100 * interval.high:.{digits}f}"


class TestTables:
    def test_cells(self, frame: pd.DataFrame) -> None:
        white, transfer = report.blocks(frame, BUDGETS)
        assert white.headings == [
            ("Clean", ""),
            ("PGD", "L∞ ≤ 0.2"),
            ("worst", "L∞ ≤ 0.2"),
            ("DDN", "median L2"),
            ("worst", "L2 ≤ 1"),
        ]
        shown = {network: [(e.value, e.interval, e.is_best) for e in entries] for network, entries in white.rows}
        assert list(shown) == ["plain", "other seed", ODD]
        # DDN's distances are 1.6 (i + 1) / 40: the median of 40 lies between the 20th and the 21st, 0.80 and 0.84;
        # P(Binomial(40, 1/2) <= 13) = 0.019 and <= 14 is 0.040, so the interval runs from the 14th to the 27th
        assert shown["plain"] == [
            ("100.0", wilson(40), True),
            ("5.0", wilson(2), False),
            ("5.0", wilson(2), False),
            ("0.82", "0.56–1.08", False),
            ("37.5", wilson(15), False),
        ]
        assert shown["other seed"] == [("97.5", wilson(39), False), *[("–", "", False)] * 4]
        assert shown[ODD][3] == ("2.05", "1.40–2.70", True)
        assert shown[ODD][4] == ("75.0", wilson(30), True)
        assert transfer.title == "Transfer: images made on “plain”, tested on the others"
        assert transfer.headings == [("Clean", ""), ("BIM", "L∞ ≤ 0.2"), ("DDN", "any size")]
        shown = {network: [(e.value, e.interval, e.is_best) for e in entries] for network, entries in transfer.rows}
        assert shown["plain"][1:] == [("source", "", False), ("source", "", False)]
        assert shown[ODD][1:] == [("82.5", wilson(33), True), ("–", "", False)]
        assert "n = 40 images" in white.note

    def test_without_a_stated_budget_all_are_shown(self, frame: pd.DataFrame) -> None:
        white = report.blocks(frame)[0]
        assert [heading for heading in white.headings if heading[0] == "PGD"] == [
            ("PGD", "L∞ ≤ 0.1"),
            ("PGD", "L∞ ≤ 0.2"),
        ]

    def test_n_is_shown_in_each_cell_where_it_differs(self, frame: pd.DataFrame) -> None:
        fewer = frame[(frame["attack"] != "pgd") | (frame["image"] < 10)]
        white = report.blocks(fewer, {"linf": 0.2})[0]
        assert white.rows[0][1][1].interval == f"{wilson(2, 10)} (n = 10)"

    def test_an_attack_that_fails_on_most_images_has_an_infinite_median(self, frame: pd.DataFrame) -> None:
        failed = rows("plain", "ddn", 40, norm="l2").assign(success=False)
        entry = report.blocks(failed)[0].rows[0][1][0]
        assert (entry.value, entry.interval) == ("∞", "∞–∞")

    def test_only_clean_images(self) -> None:
        (block,) = report.blocks(rows("plain", "none", 40))
        assert block.title == "Clean images"
        assert block.rows == [("plain", [report.Entry("100.0", wilson(40))])]  # not marked as best of one

    def test_terminal(self, frame: pd.DataFrame) -> None:
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(report.table(frame, BUDGETS))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= 100
        plain = next(line for line in lines if line.startswith(" plain"))
        assert plain.split() == ["plain", "100.0", "5.0", "5.0", "0.82", "37.5"]
        assert ODD in re.sub(r"\s+", " ", " ".join(line[:30].strip() for line in lines if line.strip()))

    @pytest.mark.parametrize(("width", "budgets"), [(80, {"linf": 0.2}), (100, BUDGETS)])
    def test_a_wide_table_fits_its_terminal(self, width: int, budgets: dict[str, float]) -> None:
        names = ["Undefended", "Undefended, another seed", "Defend++", "Defend++ with noise 0.3"]
        runs = []
        for name in names:
            runs += [rows(name, "none", 40)]
            runs += [rows(name, attack, 30, epsilon=0.2) for attack in ("fgsm", "bim", "pgd")]
            runs += [rows(name, attack, 0, norm="l2", distance=2.0) for attack in ("carlini_wagner", "ddn")]
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(report.table(pd.concat(runs), budgets))
        text = console.export_text()
        for interval in (wilson(40), wilson(30), "0.70–1.35", *([wilson(20)] if "l2" in budgets else [])):
            assert interval in text
        assert "…" not in text

    def test_markdown(self, frame: pd.DataFrame) -> None:
        text = report.markdown(frame, BUDGETS)
        assert "| network | Clean | PGD L∞ ≤ 0.2 | worst L∞ ≤ 0.2 | DDN median L2 | worst L2 ≤ 1 |" in text
        assert f"| other seed | 97.5 ({wilson(39)}) | – | – | – | – |" in text
        assert r"| noise \& \<b\>flips\</b\> $5 \| \[x\] |" in text
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {7, 5}


class TestHeadlines:
    def test_sentences(self, frame: pd.DataFrame) -> None:
        said = report.headlines(frame, BUDGETS, control="other seed")
        assert said[0].startswith("Under white-box PGD at L∞ ≤ 0.2, “plain” keeps 5.0 % [1.4, 16.5] of n = 40 images.")
        # 22 images are right on one network only: p = 2 / 2^22
        assert said[1].startswith(f"“{ODD}” keeps 60.0 % [44.6, 73.7]; against “plain”: +55.0 points [")
        assert said[1].endswith("], p < 0.001.")
        assert said[2].startswith(f"On clean images, “{ODD}” against “plain”: -10.0 points [")
        assert said[2].endswith("], p = 0.125.")  # 4 images: 2 / 2^4
        assert said[3] == (
            f"The median L2 distance that DDN needs is 0.82 [0.56, 1.08] on “plain”, 2.05 [1.40, 2.70] on “{ODD}”."
        )
        assert said[4].startswith(
            "Transferred BIM images (L∞ ≤ 0.2, made on “plain”) leave “other seed”, which is another network but not "
            f"defended, 52.5 % [37.5, 67.1]; against it: “{ODD}” +30.0 points ["
        )

    def test_best_against_next(self, frame: pd.DataFrame) -> None:
        third = pd.concat([frame, rows("third", "pgd", 22, epsilon=0.2)])
        sentence = next(s for s in report.headlines(third, BUDGETS) if s.startswith("The best"))
        assert sentence.startswith(f"The best of them, “{ODD}”, against the next, “third”: +5.0 points [")
        assert sentence.endswith("p = 0.500.")

    def test_what_cannot_be_compared_says_so(self, frame: pd.DataFrame) -> None:
        fewer = frame[(frame["network"] != ODD) | (frame["image"] < 30)]
        assert any("saw different images under pgd: 30 and 40" in sentence for sentence in report.headlines(fewer))
        missing = report.headlines(frame, BUDGETS, baseline="other seed")
        assert missing[0].endswith("“other seed” was not measured, so nothing can be compared with it.")
        assert any("met no transferred attack" in sentence for sentence in report.headlines(frame, control="plain"))

    def test_unknown_networks(self, frame: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="no network 'x', only 'plain', 'other seed'"):
            report.headlines(frame, baseline="x")
        with pytest.raises(ValueError, match="no network 'y'"):
            report.headlines(frame, control="y")


def pictures(n: int = 3, channels: int = 1) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    clean = generator.uniform(0.25, 0.75, size=(n, channels, 6, 5)).astype(np.float32)
    change = np.where(generator.random(clean.shape) < 0.5, -0.25, 0.25).astype(np.float32)
    return {
        "clean": clean,
        "adversarial": clean + change,
        "clean_reconstruction": clean[..., ::-1],
        "label": np.arange(n),
        "clean_prediction": np.arange(n),
        "prediction": np.arange(n) + (np.arange(n) > 0),
        "attack": np.array("PGD, L∞ 0.25"),
    }


class Page(HTMLParser):
    """What a reader meets: tags with their attributes, and the words of each element."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self.open[-1], data.strip()))


@pytest.fixture(scope="module")
def text(frame: pd.DataFrame) -> str:
    return report.html(
        frame,
        {ODD: pictures()},
        title="Digits <i>",
        notes={"Command": "defendpp evaluate & report"},
        budgets=BUDGETS,
        control="other seed",
    )


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


class TestHtml:
    def test_is_whole_and_needs_nothing_else(self, text: str, page: Page) -> None:
        assert page.open == []
        links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
        assert links
        assert all(link is not None and link.startswith("data:image/") for link in links)
        assert "url(" not in text
        assert "@import" not in text
        assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}

    def test_names_are_escaped(self, text: str, page: Page) -> None:
        assert ("th", ODD) in page.words
        assert ("h1", "Digits <i>") in page.words
        assert ("dd", "defendpp evaluate & report") in page.words
        assert "<b>flips" not in text
        assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i"})

    def test_tables_hold_the_numbers(self, frame: pd.DataFrame, page: Page) -> None:
        numbers = [words for tag, words in page.words if tag in ("td", "strong", "span")]
        for k in (2, 15, 21, 24, 30, 33, 36, 38, 39, 40):
            assert f"{100 * k / N:.1f}" in numbers
            assert wilson(k) in numbers
        for sentence in report.headlines(frame, BUDGETS, control="other seed"):
            assert ("li", sentence) in page.words

    def test_can_be_read_aloud(self, page: Page) -> None:
        assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
        assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        named = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
        assert named
        assert set(named) <= set(ids)

    def test_the_same_records_give_the_same_page(self, frame: pd.DataFrame) -> None:
        first, second = (report.html(frame.iloc[: 4 * N], title="x") for _ in range(2))
        assert first == second

    def test_curves_read_as_the_records_say(self, frame: pd.DataFrame) -> None:
        linf, l2 = report.curves(frame, BUDGETS)
        assert linf["title"] == "White-box PGD: accuracy against the L∞ budget"
        assert linf["alt"].endswith(f"At 0.2: plain 5 %, {ODD} 60 %.")
        # on a grid of 101 distances up to the 99th percentile, 15 of 40 and 30 of 40 need more than 1
        assert [int(x) for x in re.findall(r"(\d+) %", l2["alt"])] == pytest.approx([37.5, 75], abs=2)
        drawing = base64.b64decode(linf["image"].split(",")[1]).decode()
        assert drawing.count("<path") > 10

    def test_one_budget_is_no_curve(self, frame: pd.DataFrame) -> None:
        assert report.curves(frame[frame["epsilon"] == 0.2]) == []

    def test_how_it_was_measured(self, frame: pd.DataFrame) -> None:
        assert report.measured(frame)[0] == [
            "PGD",
            "white-box",
            "L∞ ≤ 0.1, 0.2",
            "step_size 0.25 × budget",
            "3",
            "40",
            "9",
        ]
        assert ["DDN", "transfer, from “plain”", "L2, smallest", "steps 7", "3", "40", "9"] in report.measured(frame)


class TestGallery:
    def test_pixels(self) -> None:
        from matplotlib.image import imread

        arrays = pictures(channels=3)
        shown = report._gallery("plain", arrays)
        assert [row["stage"] for row in shown["rows"]] == [
            "Clean",
            "Clean, reconstructed",
            "Adversarial",
            "Perturbation",
        ]
        assert [text for _, _, text in shown["rows"][2]["cells"]] == ["0 ✓", "2 ✗", "3 ✗"]
        assert shown["scale"] == "0.25"  # where all three channels agree
        for row, expected in [(0, arrays["clean"]), (2, arrays["adversarial"])]:
            for (uri, _, _), image in zip(shown["rows"][row]["cells"], expected, strict=True):
                pixels = imread(io.BytesIO(base64.b64decode(uri.split(",")[1])))
                np.testing.assert_allclose(pixels[..., :3], image.transpose(1, 2, 0), atol=0.5 / 255 + 1e-6)

    def test_perturbation_is_white_at_zero_red_above_blue_below(self) -> None:
        from matplotlib.image import imread

        arrays = pictures(n=1)
        arrays["adversarial"] = arrays["clean"].copy()
        arrays["adversarial"][0, 0, 0, :3] += [0.1, -0.1, 0.05]
        uri = report._gallery("plain", arrays)["rows"][-1]["cells"][0][0]
        pixels = imread(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        brighter, darker, half, same = pixels[0, :4, :3]
        assert brighter[0] > 2 * brighter[2]
        assert darker[2] > 2 * darker[0]
        assert brighter[2] + 0.2 < half[2] < half[0]  # half the change, half the colour
        assert same.min() > 0.95

    def test_from_a_file(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "g.npz", allow_pickle=False, **pictures())
        loaded = report.load_gallery("plain", tmp_path / "g.npz")
        np.testing.assert_array_equal(loaded["clean"], pictures()["clean"])
        with pytest.raises(FileNotFoundError, match=r"no gallery of 'plain' at .*nowhere"):
            report.load_gallery("plain", tmp_path / "nowhere.npz")

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"label": None}, "the gallery of 'plain' has no 'label'"),
            ({"clean": np.zeros((2, 2, 5, 5))}, r"must be \(n, 1 or 3, height, width\) with n > 0, not \(2, 2, 5, 5\)"),
            ({"clean": np.zeros((0, 1, 5, 5))}, r"with n > 0, not \(0, 1, 5, 5\)"),
            (
                {"adversarial": np.zeros((3, 1, 6, 6))},
                r"adversarial must be float of shape \(3, 1, 6, 5\), not float64",
            ),
            ({"adversarial": np.zeros((3, 1, 6, 5), dtype=np.uint8)}, "adversarial must be float .*, not uint8"),
            ({"adversarial": np.full((3, 1, 6, 5), 1.5)}, r"must be in \[0, 1\], but spans \[1.5, 1.5\]"),
            ({"adversarial": np.full((3, 1, 6, 5), nan)}, r"must be in \[0, 1\], but spans \[nan, nan\]"),
            ({"label": np.zeros(4, dtype=int)}, r"label must be 3 integers, not int64 of shape \(4,\)"),
            ({"extra": np.zeros(1)}, "has 'extra', which is none of clean, "),
        ],
    )
    def test_what_is_no_gallery(self, change: dict[str, Any], sentence: str) -> None:
        arrays = {key: array for key, array in {**pictures(), **change}.items() if array is not None}
        with pytest.raises(ValueError, match=sentence):
            report.load_gallery("plain", arrays)

    def test_of_an_unknown_network(self, frame: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="the records have no network 'x'"):
            report.html(frame, {"x": pictures()}, title="x")


def test_pages_are_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    report.write_html("one ≤ two", path)
    report.write_html("one ≤ two", path)
    with pytest.raises(FileExistsError, match=r"page\.html is there already with other content"):
        report.write_html("other", path)
    assert path.read_text(encoding="utf-8") == "one ≤ two"
    report.write_html("other", path, overwrite=True)
    assert path.read_text(encoding="utf-8") == "other"
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]
