"""Records against independent oracles: SciPy's intervals, published values, simulated coverage, counting by hand."""

import subprocess
import sys
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from record_rows import run
from scipy.stats import binomtest

from defendpp import intervals, records

N = 12
LABELS = np.arange(N) % 3


def rows(
    network: str = "plain",
    attack: str = "pgd",
    *,
    wrong: tuple[int, ...] = (),
    clean_wrong: tuple[int, ...] = (),
    epsilon: float = nan,
    norm: str = "linf",
    knowledge: str = "white-box",
    source: str | None = None,
    distance: np.ndarray[Any, Any] | None = None,
    failed: tuple[int, ...] = (),
    n: int = N,
) -> pd.DataFrame:
    """Records of one run on n images; `wrong` are the images misclassified under the attack."""
    image = np.arange(n)
    label = image % 3
    distance = np.zeros(n) if distance is None else distance
    return run(
        network,
        knowledge,
        network if source is None else source,
        norm,
        epsilon,
        image=image,
        label=label,
        attack=attack,
        settings="{}",
        clean_prediction=np.where(np.isin(image, clean_wrong), label + 1, label),
        prediction=np.where(np.isin(image, wrong), label + 1, label),
        success=~np.isin(image, failed),
        l2=distance,
        linf=distance / 10,
        queries=40,
        seed=0,
    )


@pytest.fixture
def frame() -> pd.DataFrame:
    return rows(epsilon=0.2, wrong=(1, 2))


class TestFiles:
    def test_what_is_written_is_read(self, frame: pd.DataFrame, tmp_path: Path) -> None:
        frame.loc[3, "epsilon"] = nan
        records.write(frame[frame.columns[::-1]], tmp_path / "study" / "a.parquet")
        pd.testing.assert_frame_equal(records.read(tmp_path / "study" / "a.parquet"), frame[records.SCHEMA.names])

    def test_a_folder_is_read_by_name_and_a_list_in_its_order(self, tmp_path: Path) -> None:
        for name, network in [("b", "second"), ("a", "first")]:
            records.write(rows(network), tmp_path / f"{name}.parquet")
        (tmp_path / ".c.parquet.1.partial").write_bytes(b"a job that was killed")
        assert list(records.read(tmp_path)["network"].unique()) == ["first", "second"]
        backwards = records.read([tmp_path / "b.parquet", tmp_path / "a.parquet"])
        assert list(backwards["network"].unique()) == ["second", "first"]

    def test_same_records_again_change_nothing_other_records_are_refused(
        self, frame: pd.DataFrame, tmp_path: Path
    ) -> None:
        path = tmp_path / "a.parquet"
        frame["epsilon"] = nan  # NaN equals NaN here
        records.write(frame, path)
        before = path.stat().st_mtime_ns, path.read_bytes()
        records.write(frame, path)
        with pytest.raises(FileExistsError, match=r"a\.parquet holds other records"):
            records.write(frame.assign(seed=1), path)
        assert (path.stat().st_mtime_ns, path.read_bytes()) == before

    def test_nothing_is_left_of_a_write_that_fails(
        self, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full_disk(table: object, where: Path, **_: object) -> None:
            where.write_bytes(b"half")
            raise OSError("no space left")

        monkeypatch.setattr("pyarrow.parquet.write_table", full_disk)
        with pytest.raises(OSError, match="no space left"):
            records.write(frame, tmp_path / "a.parquet")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"extra": 1}, "a column 'extra', which is none of network, "),
            ({"image": 1.0}, "column 'image' must be int64 without gaps, not float64"),
            ({"l2": 0}, "column 'l2' must be float64 without gaps, not int64"),
            ({"network": 3}, "column 'network' must be string without gaps, not int64"),
            ({"l2": nan}, "column 'l2' must be float64 without gaps"),
            ({"linf": inf}, "column 'linf' must be finite and at least 0, but is inf"),
            ({"epsilon": -0.1}, "column 'epsilon' must be at least 0, or NaN, but is -0.1 for image 0 of 'plain'"),
            (
                {"knowledge": "black-box"},
                "must be one of clean, certificate, white-box, gray-box, transfer, but is 'black-box'",
            ),
            ({"norm": "l0"}, 'column \'norm\' must be "linf", "l2"'),
            ({"norm": ""}, "column 'norm' must be \"\" for clean images and for them only"),
            ({"attack": "none"}, "column 'attack' must be \"none\" where knowledge is \"clean\", but is 'none'"),
            ({"correct": True}, "column 'correct' must say whether prediction equals label, but is .*True.* image 1"),
        ],
    )
    def test_wrong_columns(self, frame: pd.DataFrame, tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            records.write(frame.assign(**change), tmp_path / "a.parquet")
        assert list(tmp_path.iterdir()) == []

    def test_missing_column_and_no_rows(self, frame: pd.DataFrame, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the records have no column 'seed'"):
            records.write(frame.drop(columns="seed"), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="the records have no rows"):
            records.write(frame.iloc[:0], tmp_path / "a.parquet")

    def test_missing_broken_and_foreign_files(self, frame: pd.DataFrame, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"there are no records at .*nowhere"):
            records.read(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"there are no \*.parquet files in"):
            records.read(tmp_path)
        records.write(frame, tmp_path / "a.parquet")
        whole = (tmp_path / "a.parquet").read_bytes()
        (tmp_path / "broken.parquet").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"broken\.parquet is not a whole parquet file"):
            records.read(tmp_path)
        pd.DataFrame({"image": [1]}).to_parquet(tmp_path / "foreign.parquet")
        with pytest.raises(ValueError, match=r"foreign\.parquet: the records have no column 'network'"):
            records.read(tmp_path / "foreign.parquet")

    def test_the_same_row_in_two_files(self, frame: pd.DataFrame, tmp_path: Path) -> None:
        frame["epsilon"] = nan
        records.write(frame, tmp_path / "a.parquet")
        records.write(frame.assign(queries=7).iloc[:3], tmp_path / "b.parquet")
        with pytest.raises(ValueError, match="3 records are there twice, the first: image 0, pgd on 'plain'"):
            records.read(tmp_path)


class TestMedianDistance:
    def test_median_distance(self) -> None:
        run = rows("plain", "ddn", norm="l2", distance=np.arange(12.0), clean_wrong=(0,), failed=(3,), wrong=(1,))
        median = records.median_distance(run)  # 1 2 4 5 6 7 8 9 10 11 inf: image 0 was wrong before, 3 failed
        assert (median.median, median.n) == (7.0, 11)
        # P(B <= 1) = 12 / 2^11 <= 0.025 < P(B <= 2) for B ~ Binomial(11, 1/2): second from either end
        assert (median.low, median.high) == (2.0, 11.0)
        assert records.median_distance(run.assign(success=False)).median == inf
        assert records.median_distance(run.iloc[1:5]).high == inf  # four images bound no median
        with pytest.raises(ValueError, match="right when clean"):
            records.median_distance(run.iloc[:1])

    def test_median_interval_covers(self) -> None:
        generator = np.random.default_rng(0)
        covered = 0
        for _ in range(200):
            run = rows("plain", "ddn", norm="l2", distance=generator.exponential(size=50), n=50)
            median = records.median_distance(run)
            covered += median.low <= np.log(2) <= median.high
        assert covered / 200 >= 0.93


class TestJoin:
    def test_pairs_by_image_whatever_the_order(self) -> None:
        a, b = rows("a", epsilon=0.2, wrong=(1, 2)), rows("b", epsilon=0.2, wrong=(2, 3, 4))
        both = pd.concat([a, b.sample(frac=1, random_state=0)], ignore_index=True)
        pairs = records.join(both, "a", "b", attack="pgd", knowledge="white-box", epsilon=0.2)
        assert list(pairs.index[~pairs["correct_a"]]) == [1, 2]
        assert list(pairs.index[~pairs["correct_b"]]) == [2, 3, 4]
        assert intervals.paired_difference(
            pairs["correct_a"].to_numpy(), pairs["correct_b"].to_numpy()
        ).value == pytest.approx(1 / 12)

    def test_different_images_runs_or_settings(self) -> None:
        a, b = rows("a", epsilon=0.2), rows("b", epsilon=0.2)
        ask: dict[str, Any] = {"attack": "pgd", "knowledge": "white-box", "epsilon": 0.2}
        with pytest.raises(ValueError, match="'a' and 'b' saw different images under pgd: 12 and 11, 11 of them"):
            records.join(pd.concat([a, b.iloc[1:]]), "a", "b", **ask)
        with pytest.raises(ValueError, match=r"""'a' and 'b' differ in settings: '{}' and '{"steps":40}'"""):
            records.join(pd.concat([a, b.assign(settings='{"steps":40}')]), "a", "b", **ask)
        with pytest.raises(ValueError, match=r"no records of white-box pgd at 0.2 on 'c'"):
            records.join(pd.concat([a, b]), "a", "c", **ask)
        with pytest.raises(ValueError, match=r"""more than one run answers to .*: settings is '{}' or '{"steps":1}'"""):
            records.join(pd.concat([a, a.assign(settings='{"steps":1}'), b]), "a", "b", **ask)

    def test_transfer_needs_one_source(self) -> None:
        sources = [rows("a", knowledge="transfer", source=source) for source in ("s", "t")]
        frame = pd.concat([*sources, rows("b", knowledge="transfer", source="s")])
        with pytest.raises(ValueError, match="source_id is 'id of s' or 'id of t'"):
            records.join(frame, "a", "b", attack="pgd", knowledge="transfer")
        assert len(records.join(frame, "a", "b", attack="pgd", knowledge="transfer", source="s")) == N
        crossed = pd.concat([sources[1], rows("b", knowledge="transfer", source="s")])
        with pytest.raises(ValueError, match="differ in source_id"):
            records.join(crossed, "a", "b", attack="pgd", knowledge="transfer")


class TestSecurityCurve:
    def test_minimal_norm_counts_by_hand(self) -> None:
        run = rows("plain", "ddn", norm="l2", distance=np.arange(12.0) / 10, clean_wrong=(0,), failed=(5,))
        curve = records.security_curve(run, epsilons=[0.0, 0.05, 0.1, 0.35, 2.0])
        # image 0 is wrong at once, image 5 never, the others up to and without their distance
        assert list(curve["value"] * N) == pytest.approx([11, 11, 10, 8, 1])
        assert curve["low"].iloc[0] == pytest.approx(binomtest(11, 12).proportion_ci(method="wilson").low)

    def test_minimal_norm_can_only_fall_and_starts_at_clean_accuracy(self) -> None:
        generator = np.random.default_rng(0)
        run = rows("plain", "ddn", norm="linf", distance=generator.exponential(size=12), clean_wrong=(4,))
        curve = records.security_curve(run)
        assert curve["value"].is_monotonic_decreasing
        assert curve["value"].iloc[0] == pytest.approx(11 / 12)
        assert (curve["budget"].iloc[-1], curve["value"].iloc[-1]) == (run["linf"].max(), 0)

    def test_fixed_budgets_and_zero(self) -> None:
        runs = pd.concat([rows(epsilon=e, wrong=tuple(range(k)), clean_wrong=(0,)) for e, k in [(0.2, 9), (0.1, 4)]])
        curve = records.security_curve(runs)
        assert list(curve["budget"]) == [0, 0.1, 0.2]
        assert list(curve["value"] * N) == pytest.approx([11, 8, 3])
        assert list(records.security_curve(runs, epsilons=[0.2])["budget"]) == [0.2]

    def test_what_is_no_curve(self) -> None:
        runs = [rows(epsilon=e) for e in (0.1, 0.2)]
        with pytest.raises(ValueError, match=r"no run at budget 0.3, only at 0, 0.1, 0.2"):
            records.security_curve(pd.concat(runs), epsilons=[0.3])
        with pytest.raises(ValueError, match="the same images at each budget"):
            records.security_curve(pd.concat([runs[0], runs[1].iloc[2:]]))
        with pytest.raises(ValueError, match="an image is there twice"):
            records.security_curve(pd.concat([runs[0], runs[0].assign(settings="x")]))
        with pytest.raises(ValueError, match="of one network_id, but got 2"):
            records.security_curve(pd.concat([runs[0], rows("b", epsilon=0.1)]))
        with pytest.raises(ValueError, match="some rows have a budget"):
            records.security_curve(pd.concat([runs[0], rows()]))
        with pytest.raises(ValueError, match="must be white-box"):
            records.security_curve(rows("a", "ddn", norm="l2", knowledge="transfer", source="b"))


class TestWorstCase:
    def test_by_hand(self) -> None:
        distance = np.full(12, 2.0)
        distance[7] = 0.9
        frame = pd.concat(
            [
                rows(attack="pgd", norm="l2", epsilon=1.0, wrong=(1, 2), clean_wrong=(0,)),
                rows(attack="bim", norm="l2", epsilon=0.5, wrong=(2, 3), clean_wrong=(0,)),
                rows(attack="bim", norm="l2", epsilon=1.5, wrong=(9,)),  # beyond the budget
                rows(attack="bim", norm="linf", epsilon=0.5, wrong=(10,)),  # another norm
                rows(attack="fgsm", norm="l2", epsilon=0.5, wrong=(11,), knowledge="transfer", source="b"),
                rows(attack="ddn", norm="l2", wrong=(10,), distance=distance, knowledge="transfer", source="b"),
                rows(attack="ddn", norm="l2", wrong=tuple(range(12)), distance=distance, clean_wrong=(0,)),
            ]
        )
        judged = records.worst_case(frame, norm="l2", budget=1.0)
        assert list(judged.index[~judged]) == [0, 1, 2, 3, 7, 11]

    def test_only_images_that_all_runs_attacked(self) -> None:
        frame = pd.concat([rows(epsilon=0.2), rows(attack="bim", epsilon=0.2).iloc[8:]])
        assert list(records.worst_case(frame, norm="linf", budget=0.2).index) == [8, 9, 10, 11]
        with pytest.raises(ValueError, match="no image was attacked by all 2 linf runs"):
            records.worst_case(pd.concat([frame.iloc[:4], frame.iloc[12:]]), norm="linf", budget=0.2)

    def test_nothing_to_judge(self) -> None:
        with pytest.raises(ValueError, match="no white-box l2 attack within budget 1 in"):
            records.worst_case(rows(epsilon=0.2), norm="l2", budget=1.0)
        with pytest.raises(ValueError, match="of one network, but got 2"):
            records.worst_case(pd.concat([rows("a"), rows("b")]), norm="linf", budget=1.0)


class TestSummary:
    def test_cells(self) -> None:
        frame = pd.concat(
            [
                rows("b", "none", knowledge="clean", wrong=(0,)),
                rows("b", "pgd", epsilon=0.2, wrong=tuple(range(9))),
                rows("b", "ddn", norm="l2", distance=np.arange(12.0), wrong=tuple(range(12))),
                rows("a", "none", knowledge="clean"),
                rows("a", "fgsm", epsilon=0.2, wrong=(1,)),
                rows("a", "pgd", epsilon=0.2, wrong=(1,)),
                rows("a", "ddn", norm="l2", knowledge="transfer", source="b", wrong=(3,)),
            ]
        )
        table = records.summary(frame, {"linf": 0.2, "l2": 6.0})
        assert list(table.index) == ["b", "a"]
        assert list(table.columns) == [  # type: ignore[comparison-overlap]
            ("clean", "", "none", "", 0.0),
            ("white-box", "", "fgsm", "linf", 0.2),
            ("white-box", "", "pgd", "linf", 0.2),
            ("white-box", "", "all", "linf", 0.2),
            ("white-box", "", "ddn", "l2", inf),
            ("white-box", "", "all", "l2", 6.0),
            ("transfer", "b", "ddn", "l2", inf),
        ]
        assert table.loc["a", ("white-box", "", "ddn", "l2", inf)] is None
        counts = {
            network: [getattr(entry, "correct", getattr(entry, "median", None)) for entry in table.loc[network]]
            for network in table.index
        }
        assert counts["a"] == [12, 11, 11, 11, None, None, 11]
        # b never met fgsm, so it has no worst case to set beside a's; six of its images are further than 6.0 ...
        assert counts["b"] == [11, None, 3, None, 5.5, 5, None]

    @pytest.mark.parametrize("column", ["data", "split", "scale"])
    def test_tables_do_not_mix(self, column: str) -> None:
        frame = pd.concat([rows("a"), rows("b").assign(**{column: "other"})])
        with pytest.raises(ValueError, match=f"a table is of one {column}, but the records hold .* and 'other'"):
            records.summary(frame)

    def test_two_runs_in_a_cell(self) -> None:
        with pytest.raises(ValueError, match="more than one run answers to white-box pgd on 'a'"):
            records.summary(pd.concat([rows("a"), rows("a").assign(network_id="another training")]))


@pytest.fixture
def certified() -> pd.DataFrame:
    """Four certificates; the third image is wrong."""
    made = rows(attack="smoothing", knowledge="certificate", norm="l2", wrong=(2,), n=4)
    return made.assign(l2=[0.6, 0.3, 0.0, 1.2], success=~made["correct"], source="", source_id="")


def test_the_curve_of_a_certificate_counts_what_is_certified_beyond(certified: pd.DataFrame) -> None:
    curve = records.security_curve(certified, [0.0, 0.3, 0.5, 1.2])
    assert curve["value"].tolist() == [0.75, 0.5, 0.5, 0.0]


def test_a_table_has_a_column_for_each_certified_radius_that_is_reached(certified: pd.DataFrame) -> None:
    table = records.summary(certified)
    columns: list[Any] = table.columns.tolist()
    assert {column[:3] for column in columns} == {("certificate", "", "smoothing")}
    assert [column[4] for column in columns] == [0.0, 0.25, 0.5, 1.0]
    assert [cell.value for cell in table.iloc[0]] == [0.75, 0.75, 0.5, 0.25]


def test_neither_records_nor_reports_load_torch() -> None:
    code = "import sys, defendpp.records, defendpp.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
