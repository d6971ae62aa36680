"""Records: one row per (network, attack, threat model, image). Every table and figure is a function of them.

A job (one network, one attack, one source) writes one parquet file once; a study is a folder of such files, and a
job whose file exists need not run again. Distances and budgets are in pixel units, images in [0, 1].
"""

import json
from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from defendpp.files import write_whole
from defendpp.intervals import Accuracy, Distance, accuracy, median

SCHEMA = pa.schema(
    {
        "network": pa.string(),  # display name
        "network_id": pa.string(),  # hash of weights and recipe
        "data": pa.string(),
        "split": pa.string(),
        "image": pa.int64(),  # stable index of the image in its source
        "label": pa.int64(),
        "attack": pa.string(),  # one of ATTACK_NAMES or a name of the caller's; "none" is the clean image
        "norm": pa.string(),  # "linf", "l2", or "" for clean
        "epsilon": pa.float64(),  # NaN: clean, or a minimal-norm attack, which has no budget
        "settings": pa.string(),  # canonical JSON of all settings of the attack
        "knowledge": pa.string(),  # one of KNOWLEDGE
        "source": pa.string(),  # display name of the network the images were made on, "" for clean
        "source_id": pa.string(),
        "clean_prediction": pa.int64(),
        "prediction": pa.int64(),  # of `network`, on the adversarial image; of its smoothed form where certified
        "correct": pa.bool_(),  # prediction == label
        "success": pa.bool_(),  # the attack's own success, on `source`
        "l2": pa.float64(),  # distances of the adversarial image from the clean one; of a certificate, its radius
        "linf": pa.float64(),
        "queries": pa.int64(),
        "seed": pa.int64(),
        "scale": pa.string(),  # "cpu", "paper" or "quickstart"
    }
)
ATTACK_NAMES = {
    "none": "Clean",
    "fgsm": "FGSM",
    "bim": "BIM",
    "pgd": "PGD",
    "auto_pgd": "Auto-PGD",
    "square": "Square",
    "pixel_flips": "Pixel flips",
    "adaptive_bottleneck": "PGD + bottleneck",
    "adaptive_reconstruction": "PGD + decoder",
    "cascade": "Cascade",
    "auto_attack": "AutoAttack",
    "minimal_pgd": "Minimal PGD",
    "carlini_wagner": "C&W",
    "ddn": "DDN",
    "smoothing": "Smoothing",
}
"""What people call the attacks, in the order of tables."""
KNOWLEDGE = ("clean", "certificate", "white-box", "gray-box", "transfer")
TRANSFERRED = ("gray-box", "transfer")  # made on one network, its source, and tested on another
NORMS = ("", "linf", "l2")
NORM_NAMES = {"linf": "L∞", "l2": "L2"}
RADII = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""L2 radii that tables give certified accuracy at."""
KEY = ["network_id", "data", "split", "attack", "norm", "epsilon", "settings", "knowledge", "source_id", "image"]

Column = tuple[str, str, str, str, float]
"""A column of `summary`: knowledge, source, attack, norm, budget."""


def attack_name(attack: str) -> str:
    """`ATTACK_NAMES`, or the caller's own name."""
    return ATTACK_NAMES.get(attack, attack)


def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """The records with their columns in the order of `SCHEMA`; a ValueError says what is wrong with them."""
    for name in frame.columns:
        if name not in SCHEMA.names:
            raise ValueError(f"the records have a column {name!r}, which is none of {', '.join(SCHEMA.names)}")
    for field in SCHEMA:
        if field.name not in frame.columns:
            raise ValueError(f"the records have no column {field.name!r}")
        column = frame[field.name]
        wanted = "string" if field.type == pa.string() else np.dtype(field.type.to_pandas_dtype()).name
        is_wanted = pd.api.types.is_string_dtype(column) if wanted == "string" else column.dtype == wanted
        if not is_wanted or (field.name != "epsilon" and column.isna().any()):
            raise ValueError(f"column {field.name!r} must be {wanted} without gaps, not {column.dtype}")
    if frame.empty:
        raise ValueError("the records have no rows")
    _require(frame, "knowledge", frame["knowledge"].isin(KNOWLEDGE), f"must be one of {', '.join(KNOWLEDGE)}")
    _require(frame, "norm", frame["norm"].isin(NORMS), 'must be "linf", "l2", or "" for clean images')
    is_clean = frame["attack"] == "none"
    _require(frame, "attack", is_clean == (frame["knowledge"] == "clean"), 'must be "none" where knowledge is "clean"')
    _require(frame, "norm", is_clean == (frame["norm"] == ""), 'must be "" for clean images and for them only')
    _require(frame, "epsilon", frame["epsilon"].isna() | (frame["epsilon"] >= 0), "must be at least 0, or NaN")
    for distance in ("l2", "linf"):
        _require(frame, distance, (frame[distance] >= 0) & (frame[distance] < inf), "must be finite and at least 0")
    agrees = frame["correct"] == (frame["prediction"] == frame["label"])
    _require(frame, "correct", agrees, "must say whether prediction equals label")
    repeated = frame.duplicated(KEY)
    if repeated.any():
        row = frame[repeated].iloc[0]
        raise ValueError(
            f"{repeated.sum()} records are there twice, the first: image {row['image']}, {row['attack']} on "
            f"{row['network']!r} ({row['knowledge']}, settings {row['settings'] or '{}'})"
        )
    return frame.loc[:, list(SCHEMA.names)]


def _require(frame: pd.DataFrame, column: str, holds: "pd.Series[bool]", expected: str) -> None:
    if not holds.all():
        value, image, network = frame.loc[~holds, [column, "image", "network"]].astype(object).values.tolist()[0]
        raise ValueError(f"column {column!r} {expected}, but is {value!r} for image {image} of {network!r}")


def write(frame: pd.DataFrame, path: str | Path, about: Mapping[str, str] | None = None) -> None:
    """Write valid records to one parquet file, whole or not at all, with `about` as the file's metadata.

    Writing the same records again changes nothing; other records raise FileExistsError, and the file stays as it is.
    """
    path = Path(path)
    frame = validate(frame)
    if path.exists():
        if not read(path).equals(frame.reset_index(drop=True)):
            raise FileExistsError(f"{path} holds other records; remove it, or choose another name")
        return
    table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False)
    table = table.replace_schema_metadata(dict(about) if about else None)
    # image numbers are nearly all different, which a dictionary cannot shorten
    form: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 15,
        "use_dictionary": [name for name in SCHEMA.names if name != "image"],
        "column_encoding": {"image": "DELTA_BINARY_PACKED"},
        "write_statistics": False,  # nobody asks for them, and they are a tenth of a file
    }
    write_whole(path, lambda partial: pq.write_table(table, partial, **form))
    del table
    pa.default_memory_pool().release_unused()  # or memory grows with every job


def read(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """The records of a file, of every `*.parquet` of a folder (by name), or of several of either, in that order.

    FileNotFoundError for a path or records that are not there, ValueError for a file that is broken, that is not
    records, or that repeats rows of another.
    """
    files: list[Path] = []
    for path in [Path(paths)] if isinstance(paths, str | Path) else map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"there are no records at {path}")
        files += sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"there are no *.parquet files in {paths}")
    frames = []
    for file in files:
        try:
            frames.append(validate(pq.ParquetFile(file).read().to_pandas()))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a whole parquet file: {error}") from error
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    pa.default_memory_pool().release_unused()
    return validate(pd.concat(frames, ignore_index=True)) if len(frames) > 1 else frames[0]


def cell(
    records: pd.DataFrame,
    *,
    network: str,
    attack: str,
    knowledge: str,
    epsilon: float | None = None,
    source: str | None = None,
) -> pd.DataFrame:
    """The rows of one run, in the order of the images.

    `epsilon=None` is no budget: clean images and minimal-norm attacks. `source=None` takes the only source there is.
    ValueError when no row, or more than one run, answers to this.
    """
    chosen = records[
        (records["network"] == network) & (records["attack"] == attack) & (records["knowledge"] == knowledge)
    ]
    chosen = chosen[chosen["epsilon"].isna() if epsilon is None else np.isclose(chosen["epsilon"], epsilon, atol=0)]
    if source is not None:
        chosen = chosen[chosen["source"] == source]
    asked = f"{knowledge} {attack}{'' if epsilon is None else f' at {epsilon:g}'} on {network!r}"
    if chosen.empty:
        raise ValueError(f"there are no records of {asked}{'' if source is None else f' from {source!r}'}")
    for column in ("network_id", "data", "split", "norm", "settings", "source_id"):
        values = chosen[column].unique()
        if len(values) > 1:
            raise ValueError(f"more than one run answers to {asked}: {column} is {' or '.join(map(repr, values))}")
    return chosen.sort_values("image", ignore_index=True)


def join(
    records: pd.DataFrame,
    network_a: str,
    network_b: str,
    *,
    attack: str,
    knowledge: str,
    epsilon: float | None = None,
    source: str | None = None,
) -> pd.DataFrame:
    """Two networks under the same attack, image by image: columns label, correct_a, correct_b, indexed by image.

    ValueError if the two were not measured on the same images with the same settings. See `cell` for the arguments.
    """
    a, b = (
        cell(records, network=network, attack=attack, knowledge=knowledge, epsilon=epsilon, source=source).set_index(
            "image"
        )
        for network in (network_a, network_b)
    )
    names = f"{network_a!r} and {network_b!r}"
    must_agree = ["data", "split", "settings"] + ["source_id"] * (knowledge in TRANSFERRED)
    for column in must_agree:
        first, second = (each[column].iloc[0] for each in (a, b))
        if first != second and not (column == "settings" and _of_all(first) == _of_all(second)):
            raise ValueError(f"{names} differ in {column}: {first!r} and {second!r}")
    if not a.index.equals(b.index) or not a["label"].equals(b["label"]):
        shared = len(a.index.intersection(b.index))
        raise ValueError(f"{names} saw different images under {attack}: {len(a)} and {len(b)}, {shared} of them shared")
    return pd.DataFrame({"label": a["label"], "correct_a": a["correct"], "correct_b": b["correct"]})


def _of_all(settings: str) -> dict[str, object]:
    """An attack's settings, but for what carries it past a purifier, which other networks do not have."""
    return {name: value for name, value in json.loads(settings or "{}").items() if name != "gradient"}


def reach(rows: pd.DataFrame) -> Float[np.ndarray, " row"]:
    """How far a minimal-norm attack went: infinitely where it failed, -inf where the clean image is wrong already.

    Of a certificate: how far the right prediction is certified, -inf where the smoothed classifier is wrong.
    """
    if (rows["knowledge"] == "certificate").all():
        return np.where(rows["correct"], rows["l2"], -inf)
    distance = np.where(rows["norm"] == "l2", rows["l2"], rows["linf"])
    is_right = rows["clean_prediction"] == rows["label"]
    return np.where(is_right, np.where(rows["success"], distance, inf), -inf)


def median_distance(rows: pd.DataFrame) -> Distance:
    """How far a minimal-norm attack had to go, in its own norm, for the images the network gets right when clean.

    A failed attack counts as infinitely far.
    """
    distances = reach(rows[rows["clean_prediction"] == rows["label"]])
    if not len(distances):
        raise ValueError("the median distance needs an image that is right when clean, but there is none")
    return median(distances)


def security_curve(rows: pd.DataFrame, epsilons: Iterable[float] | None = None) -> pd.DataFrame:
    """Accuracy against budget, for one network and one attack: columns budget, value, low, high, n.

    A minimal-norm attack gives every budget from one run: an image withstands budget e if it is right when clean and
    the attack failed or needed more than e; the curve can only fall. This holds on the network that was attacked, so
    transferred images are refused. A certificate gives, at every radius, the accuracy that no attack can lower. A
    fixed-budget attack gives the budgets it was run at (all on the same images), and budget 0, the clean images.
    `epsilons` asks for certain budgets; by default 101 of them up to the furthest image, or every budget that was run.
    """
    for column in ("network_id", "data", "split", "attack", "norm", "knowledge", "source_id"):
        if rows[column].nunique() != 1:
            raise ValueError(f"a security curve is of one {column}, but got {rows[column].nunique()}")
    if rows.duplicated(["epsilon", "image"]).any():
        raise ValueError("a security curve is of one run at each budget, but an image is there twice")
    has_budget = rows["epsilon"].notna()
    if has_budget.all():
        first, *others = runs = [run for _, run in rows.sort_values("image").groupby("epsilon")]
        if any(list(run["image"]) != list(first["image"]) for run in others):
            raise ValueError("a security curve needs the same images at each budget")
        right = {0.0: (first["clean_prediction"] == first["label"]).to_numpy()}
        right |= {float(run["epsilon"].iloc[0]): run["correct"].to_numpy() for run in runs}
        wanted = list(right if epsilons is None else epsilons)
        missing = set(wanted) - set(right)
        if missing:
            raise ValueError(
                f"there is no run at budget {min(missing):g}, only at {', '.join(f'{e:g}' for e in right)}"
            )
        right = {budget: right[budget] for budget in wanted}
    elif has_budget.any():
        raise ValueError("a security curve is of one kind of attack, but some rows have a budget and others have none")
    else:
        if rows["knowledge"].iloc[0] not in ("white-box", "certificate"):
            raise ValueError(
                "the distance of an attack bounds only the network it was made on, so it must be white-box"
            )
        far = reach(rows)
        furthest = far[np.isfinite(far)].max(initial=0.0)
        budgets = np.linspace(0, furthest, 101).tolist() if epsilons is None else list(epsilons)
        right = {budget: far > budget for budget in budgets}
    points = {budget: accuracy(each) for budget, each in right.items()}
    return pd.DataFrame(
        [(budget, point.value, point.low, point.high, point.n) for budget, point in points.items()],
        columns=["budget", "value", "low", "high", "n"],
    )


def worst_case(records: pd.DataFrame, *, norm: str, budget: float) -> "pd.Series[bool]":
    """Which images of one network withstand every attack of a norm within a budget, indexed by image.

    An image withstands if it is right when clean, right under each fixed-budget run at epsilon <= budget, white-box or
    transferred, and each white-box minimal-norm run failed or needed more than budget. Runs at a larger epsilon say
    nothing here and are left out. Only the images that all these runs attacked are judged.
    """
    if records["network_id"].nunique() != 1:
        raise ValueError(f"a worst case is of one network, but got {records['network_id'].nunique()}")
    rows = _bounded(records, norm, budget)
    if not _runs(rows):
        raise ValueError(f"there is no white-box {norm} attack within budget {budget:g} in these records")
    by_image = rows.assign(withstands=_withstands(rows, budget)).groupby("image")["withstands"]
    runs = rows.groupby(["data", "split", "attack", "settings", "epsilon", "source_id"], dropna=False).ngroups
    judged = by_image.all()[by_image.count() == runs]
    if judged.empty:
        raise ValueError(f"no image was attacked by all {runs} {norm} runs within budget {budget:g}")
    return judged


def fallen(records: pd.DataFrame, *, norm: str, budget: float) -> set[int]:
    """Images of one network that some attack of the norm broke within the budget, whatever else they met."""
    rows = _bounded(records, norm, budget)
    return {int(image) for image in rows.loc[~_withstands(rows, budget), "image"]}


def _withstands(rows: pd.DataFrame, budget: float) -> Bool[np.ndarray, " row"]:
    is_right = (rows["correct"] & (rows["clean_prediction"] == rows["label"])).to_numpy()
    return np.where(rows["epsilon"].isna(), reach(rows) > budget, is_right).astype(bool)


def summary(records: pd.DataFrame, budgets: Mapping[str, float] | None = None) -> pd.DataFrame:
    """The records as a table: a row per network, in order of appearance; a column per threat model.

    Columns have the levels knowledge, source ("" unless transferred), attack, norm and epsilon: 0 for clean images,
    infinite for a minimal-norm attack. Cells are an `Accuracy`; a minimal-norm attack succeeds on any network if it may
    go as far as it likes, so white-box its cell is a `Distance`, and raw accuracy appears only where images are
    transferred. `budgets` maps a norm to a budget: one more column, attack "all", is then the worst case
    (`worst_case`) over all attacks of that norm, for the networks that met all of them. Certified accuracy has a column
    for each of `RADII` that it reaches. What was not measured is None.

    ValueError if records of several data sets, splits or scales are mixed, or if a cell has more than one run.
    """
    for column in ("data", "split", "scale"):
        values = records[column].unique()
        if len(values) > 1:
            raise ValueError(f"a table is of one {column}, but the records hold {' and '.join(map(repr, values))}")
    networks = list(records["network"].unique())
    cells: dict[Column, dict[str, Accuracy | Distance]] = {}
    by_run = ["network", "attack", "norm", "knowledge", "source", "epsilon"]
    for _, rows in records.groupby(by_run, dropna=False, sort=False):
        network, attack, norm, knowledge, source = (str(rows[name].iloc[0]) for name in by_run[:-1])
        epsilon = float(rows["epsilon"].iloc[0])
        has_budget = not np.isnan(epsilon)
        if knowledge == "certificate":
            far = reach(rows)
            for radius in [radius for radius in RADII if radius == 0 or (far > radius).any()]:
                cells.setdefault((knowledge, "", attack, norm, radius), {})[network] = accuracy(far > radius)
            continue
        cell(rows, network=network, attack=attack, knowledge=knowledge, epsilon=epsilon if has_budget else None)
        is_minimal = attack != "none" and not has_budget
        budget = epsilon if has_budget else inf if is_minimal else 0.0
        threat = (knowledge, source if knowledge in TRANSFERRED else "", attack, norm, budget)
        if not (is_minimal and knowledge == "white-box"):
            cells.setdefault(threat, {})[network] = accuracy(rows["correct"].to_numpy())
        elif (rows["clean_prediction"] == rows["label"]).any():
            cells.setdefault(threat, {})[network] = median_distance(rows)
    for norm, budget in (budgets or {}).items():
        bounded = _bounded(records, norm, budget)
        met = {network: _runs(bounded[bounded["network"] == network]) for network in networks}
        everything = set().union(*met.values())
        threat = ("white-box", "", "all", norm, float(budget))
        for network in networks:
            if everything and met[network] == everything:
                judged = worst_case(bounded[bounded["network"] == network], norm=norm, budget=budget)
                cells.setdefault(threat, {})[network] = accuracy(judged.to_numpy())
    columns = sorted(cells, key=_column_order)
    table = pd.DataFrame(
        [[cells[column].get(network) for column in columns] for network in networks],
        index=pd.Index(networks, name="network"),
        dtype=object,
    )
    table.columns = pd.MultiIndex.from_tuples(columns, names=["knowledge", "source", "attack", "norm", "epsilon"])
    return table


def _bounded(records: pd.DataFrame, norm: str, budget: float) -> pd.DataFrame:
    """Rows of a norm that bound what a network withstands: no attack was allowed more than the budget, and those whose
    distance counts were made on the network itself."""
    is_bound = (records["knowledge"] == "white-box") | (
        records["knowledge"].isin(TRANSFERRED) & records["epsilon"].notna()
    )
    return records[is_bound & (records["norm"] == norm) & ~(records["epsilon"] > budget)]


def _runs(rows: pd.DataFrame) -> set[tuple[str, float]]:
    """The white-box attacks."""
    rows = rows[rows["knowledge"] == "white-box"]
    return set(zip(rows["attack"], rows["epsilon"].fillna(inf), strict=True))


def _column_order(column: Column) -> tuple[object, ...]:
    """By knowledge; linf before l2; the known attacks in their order, others by name, then the worst case."""
    knowledge, source, attack, norm, epsilon = column
    rank = [*ATTACK_NAMES].index(attack) if attack in ATTACK_NAMES else len(ATTACK_NAMES)
    return KNOWLEDGE.index(knowledge), source, norm != "linf", attack == "all", rank, attack, epsilon
