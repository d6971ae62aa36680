"""Write into the README the numbers and pictures that come from `results/`; nothing there is typed by hand.

    python docs/generate.py          # after new records were put into results/

`results/quickstart` holds records, pictures and evaluation.json of `defendpp quickstart`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from defendpp import records, report

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "results" / "quickstart"


def readme(text: str) -> str:
    """The README with the quickstart's tables between its two marks."""
    about, made = _quickstart()
    before, rest = text.split("<!-- quickstart -->")
    _, after = rest.split("<!-- /quickstart -->")
    facts = (
        f"`make quickstart` on {made['data'].iloc[0]}: ResNet-18 of width 16, one training seed a row, "
        f"n = {made['image'].nunique()} test images, seed {made['seed'].iloc[0]} for the attacks. "
        "Accuracy in %, 95 % interval in brackets; L2 distances in pixel units of [0, 1]. One pair of networks a "
        "comparison: intervals are over images only, and two undefended networks usually differ too "
        "([over several training seeds](docs/study.md))."
    )
    said = report.headlines(made, about["budgets"], baseline=about["baseline"], control=about["control"])
    findings = "\n".join(f"- {sentence}" for sentence in said)
    tables = report.markdown(made, about["budgets"]).strip()
    return f"{before}<!-- quickstart -->\n{facts}\n\n{findings}\n\n{tables}\n<!-- /quickstart -->{after}"


def picture(path: Path) -> None:
    """The README's picture: two security curves, and the decoder's view of clean and adversarial digits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    about, made = _quickstart()
    figure = pyplot.figure(figsize=(11, 3.6), dpi=130, layout="constrained")
    plots, pictures = np.asarray(figure.subfigures(1, 2, width_ratios=[3, 2])).ravel()
    left, right = plots.subplots(1, 2, sharey=True)
    white_box = made[made["knowledge"] == "white-box"]
    for axes, attack in ((left, "pgd"), (right, "ddn")):
        for network, colour, marker in zip(about["names"], report.COLOURS, report.MARKERS, strict=False):
            rows = white_box[(white_box["network"] == network) & (white_box["attack"] == attack)]
            curve = records.security_curve(rows)
            x, y, low, high = (
                curve[name] * (1 if name == "budget" else 100) for name in ("budget", "value", "low", "high")
            )
            axes.plot(x, y, color=colour, marker=marker, markevery=max(1, len(curve) // 8), markersize=4, label=network)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        norm = records.NORM_NAMES[str(rows["norm"].iloc[0])]
        axes.set(xlabel=f"{norm} budget, pixel units", title=f"white-box {records.ATTACK_NAMES[attack]}", ylim=(0, 100))
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel(f"accuracy, % (n = {made['image'].nunique()})")
    right.legend(frameon=False, fontsize=8)
    hardened = [name for name in about["names"] if "Defend++" in name][-1]  # which has a decoder
    id_ = made.loc[made["network"] == hardened, "network_id"].iloc[0]
    with np.load(QUICKSTART / "pictures" / f"{id_}.npz") as arrays:
        rows_shown = ["clean", "clean_reconstruction", "adversarial", "adversarial_reconstruction"]
        grid = pictures.subplots(4, 6)
        for line, name in zip(grid, rows_shown, strict=True):
            for axes, image in zip(line, arrays[name], strict=False):
                axes.imshow(image[0], cmap="gray", vmin=0, vmax=1)
                axes.axis("off")
            line[0].set_title(name.replace("_", ", "), fontsize=8, loc="left", pad=2)
        pictures.suptitle(f"{hardened}, {arrays['attack']}".replace("bim", "BIM at L∞"), fontsize=9)
    figure.savefig(path)
    pyplot.close(figure)


def _quickstart() -> tuple[dict[str, Any], Any]:
    about = json.loads((QUICKSTART / "evaluation.json").read_text())
    made = records.read([QUICKSTART / "records" / name for name in about["records"]])
    about["names"] = list(made["network"].unique())
    return about, made


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(readme(page.read_text()))
    picture(ROOT / "docs" / "quickstart.png")
