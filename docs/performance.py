"""Write docs/performance.md from the records that `benchmarks/` wrote into `results/benchmarks`.

python docs/performance.py
"""

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def performance(folder: Path = ROOT / "results" / "benchmarks") -> str:
    """docs/performance.md from the records of `benchmarks/`; one that is not there has no section."""
    sections = {
        "attacks.json": _attacks,
        "cascade.json": _cascade,
        "curve.json": _curve,
        "training.json": _training,
        "scale.json": _scale,
    }
    parts = [
        "# Performance",
        "<!-- Written by docs/performance.py from results/benchmarks; do not edit. -->",
        "The *gradient unit* is one plain PyTorch forward and input-gradient pass over the same batch. It is timed "
        "directly before and after what it is compared with, in the same process, so that other work on the machine "
        "changes the ratios little; the range over the rounds shows how much.",
    ]
    for name, section in sections.items():
        if (folder / name).exists():
            parts += section(json.loads((folder / name).read_text()))
    return "\n\n".join(parts) + "\n"


def _attacks(made: dict[str, Any]) -> list[str]:
    """Our attacks beside those of other libraries; of each attack ours come first."""
    libraries = list(made["libraries"])
    attacks = list(dict.fromkeys(row["attack"] for rows in made["networks"].values() for row in rows))
    attacks.sort(key=_ATTACK_ORDER.index)
    versions = "; ".join(f"{name}: {version}" for name, version in made["libraries"].items())
    parts = [
        "## Attacks",
        "All in one run: `make benchmarks`. Every library gets the same network, images as one batch, threads and "
        "number of steps.",
        f"{made['versions']}, {made['machine']}; ResNet-18 of width 16, {made['images']} digits that the network gets "
        f"right, {made['rounds']} rounds. {versions}.",
        "- *Steps x unit*: time of the attack as a multiple of its steps x unit, the network's weights frozen; median "
        "of the rounds, range in brackets.\n"
        "- *Ours / theirs*: our time on the prepared network as a multiple of this row's, weights frozen.\n"
        "- *Trainable*: steps x unit where the network's weights require gradients, as after training. Ours freezes "
        "them itself; some others compute their gradient too. In brackets ours / theirs.\n"
        "- *Prepared* is `defendpp.attacks.prepare`, which evaluations use: a frozen copy, batch normalisation folded, "
        "channels last; the original network checks every success.\n"
        "- *Passes*: forward passes for each image. C&W by torchattacks has no search, and stops where its cost "
        "rises; by ART it searches along every step.\n"
        "- *Flipped*: the share of images that the network itself gets wrong in the end, within the budget; *L2*: the "
        "median distance, an image that is not flipped being infinitely far; none where fewer than half are.",
    ]
    for network, rows in made["networks"].items():
        found = {(row["attack"], row["library"], row["trainable"]): row for row in rows}
        lines = [
            f"### {network}",
            "",
            "| attack | by | steps x unit | ours / theirs | trainable | passes | flipped | median L2 |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        for attack in attacks:
            ours = found.get((attack, libraries[0], False), {}).get("median")
            for library in libraries:
                if (attack, library, False) in found:
                    row, trainable = found[attack, library, False], found.get((attack, library, True), {})
                    lines.append(_attack_line(row, trainable.get("median"), ours, library == libraries[0]))
        parts.append("\n".join(lines))
    called = {(row["attack"], row["library"]): row["settings"] for rows in made["networks"].values() for row in rows}
    settings = [
        f"- {attack}, {library}: `{called[attack, library]}`"
        for attack in attacks
        for library in libraries
        if (attack, library) in called
    ]
    return [*parts, "### Settings", "\n".join(settings)]


_ATTACK_ORDER = ["BIM", "PGD", "PGD, first success", "C&W", "DDN"]


def _attack_line(row: dict[str, Any], trainable: float | None, ours: float | None, is_ours: bool) -> str:
    name = row["attack"]
    if "error" in row:
        return f"| {name} | {row['library']} | failed: {row['error']} | | | | | |"
    low, high, rounds = min(row["ratios"]), max(row["ratios"]), len(row["ratios"])
    cells = [
        name,
        row["library"],
        f"{row['median']:.2f} ({low:.2f}–{high:.2f}, {rounds} round{'s' * (rounds > 1)})",
        "" if ours is None or is_ours else f"{ours / row['median']:.2f}",
        "" if trainable is None or ours is None else f"{trainable:.2f} ({ours / trainable:.2f})",
        f"{row['passes']:.0f}",
        f"{100 * row['flipped']:.1f} %",
        "" if row["median L2"] is None else f"{row['median L2']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _cascade(made: dict[str, Any]) -> list[str]:
    """Robust accuracy by the cascade beside AutoAttack's."""
    lines = [
        "| network | L∞ budget | clean | cascade | AutoAttack | broken by one only | time, cascade / AutoAttack |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in made["networks"].items():
        accuracies = [
            f"{100 * row[each]['value']:.1f} % [{100 * row[each]['low']:.1f}, {100 * row[each]['high']:.1f}]"
            for each in ("clean", "cascade", "AutoAttack")
        ]
        only = f"{row['broken by the cascade only']} / {row['broken by AutoAttack only']}"
        lines.append(f"| {name} | {row['epsilon']:g} | {' | '.join(accuracies)} | {only} | {row['ratio']:.3f} |")
    units = "; ".join(f"{name} {row['gradient units']:.1f}" for name, row in made["networks"].items())
    return [
        "## Robust accuracy",
        "`attacks.cascade` beside AutoAttack standard (`pyautoattack`) on the same images, with 95 % intervals: "
        f"`python benchmarks/cascade.py`. {made['images']} digits, seed {made['seed']}; {made['versions']}, "
        f"{made['machine']}. *Broken by one only*: images that the cascade alone breaks / AutoAttack alone.",
        "\n".join(lines),
        f"The cascade's time in gradient units, for all images: {units}.",
    ]


def _curve(made: dict[str, Any]) -> list[str]:
    """The security curve from one run beside the attack once per budget."""
    lines = [
        "| network | beside | time, one run / these | largest difference, points | mean |",
        "|---|---|---:|---:|---:|",
    ]
    for network, rows in made["networks"].items():
        for row in rows:
            if row["attack"] != "minimal_pgd":
                largest = max(row["difference"], key=abs)
                mean = statistics.mean(row["difference"])
                cells = [network, row["attack"], _spread(row["ratios"]), f"{largest:+.1f}", f"{mean:+.1f}"]
                lines.append(f"| {' | '.join(cells)} |")
    budgets = ", ".join(f"{budget:g}" for budget in made["budgets"])
    return [
        "## Security curve",
        f"One run of `minimal_pgd` ({made['steps']['minimal_pgd']} steps) beside PGD ({made['steps']['pgd']} steps) at "
        f"each of the L∞ budgets {budgets}: `python benchmarks/curve.py`. {made['images']} digits, {made['rounds']} "
        "rounds, prepared networks. A difference is the accuracy under the one run less that under PGD: below 0 the "
        "one run broke more images.",
        "\n".join(lines),
    ]


def _training(made: dict[str, Any]) -> list[str]:
    """What hardening costs beside plain training, and the ways of computing a step."""
    parts = [
        "## Training",
        "A step is forward, backward and update on one batch; figures are multiples of a step of plain training in the "
        f"same round, median of {made['rounds']} rounds and range in brackets: `python benchmarks/training.py`. "
        f"{made['versions']}, {made['machine']}. *Bare loop* is PGD-7 with nothing but its seven gradients, the least "
        "that adversarial training with it can cost; the others use the attacks of this package, which also keep the "
        "best iterate and check it.",
    ]
    for each in made["networks"]:
        by_name, by_way = each["objectives"], each["executions"]
        lines = [f"### {each['network']}", "", "| trained on (channels last) | x plain | ms |", "|---|---:|---:|"]
        lines += [f"| {name} | {_spread(row['ratios'])} | {row['milliseconds']:.4g} |" for name, row in by_name.items()]
        lines += ["", "| computed | plain, x eager plain | Defend++, x eager plain | Defend++ x plain, same way |"]
        lines += ["|---|---:|---:|---:|"]
        for way in dict.fromkeys(name.split(" | ")[1] for name in by_way):
            plain, hardened = (by_way[f"{name} | {way}"] for name in ("plain", "Defend++, pyramid"))
            cells = [plain["ratios"], hardened["ratios"], hardened["to plain, the same way"]]
            lines.append(f"| {way} | {' | '.join(map(_spread, cells))} |")
        parts.append("\n".join(lines))
    return parts


def _scale(made: dict[str, Any]) -> list[str]:
    """Memory and time against the number of images."""
    lines = ["| images | peak memory, MB | x that of 1,000 | µs an image |", "|---:|---:|---:|---:|"]
    for row in made["sizes"]:
        peak = statistics.median(row["peak MB"])
        cells = [
            f"{row['images']:,}",
            f"{peak:.0f}",
            _spread(row["peak to 1,000 images"]),
            f"{row['microseconds an image']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        "## Scale",
        "A network evaluated clean and under FGSM, sets and records written, each size in a process of its own that "
        "holds 60,000 images: `python benchmarks/scale.py`. Peak memory is the largest resident set of the process. "
        "What grows are the records, a row for each image and attack.",
        "\n".join(lines),
    ]


def _spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    (ROOT / "docs" / "performance.md").write_text(performance())
