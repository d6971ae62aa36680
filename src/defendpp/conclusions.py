"""What the study concludes: a sentence for each group of questions, counted from their answers. Nothing is typed."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from defendpp import questions, reported
from defendpp.findings import ENOUGH, FLOOR, UNDECIDED, WORDS, Answer, Contrast, Question, right
from defendpp.paper import Scale
from defendpp.study import TABLES, Place

Asked = Mapping[Question, Sequence[Answer]]
TUNED = "fine-tuned"
FELL = "with hardly an image left on either side"
"""Instead of a word, where neither row has more than `FLOOR` right."""


def conclusions(asked: Asked, scale: Scale, place: Place) -> list[str]:
    """One paragraph each, in Markdown; of what was not measured nothing is said."""
    told = [
        _against("Against undefended networks that are not the source", asked, questions.UNDEFENDED),
        _parts(asked, scale, place),
        _against("Against adversarial training and ComDefend", asked, questions.BASELINES),
        _with_noise(asked),
        _white_box(asked),
        _numbers(scale, place),
    ]
    return [each for each in told if each]


def _judged(asked: Asked, group: Iterable[Question]) -> list[Contrast]:
    """Every difference that a verdict of these questions is of, between rows that both descend from the source or both
    do not: images made on the source do more harm to its descendants."""
    return [
        found
        for question in group
        for answer in asked[question]
        if len({TUNED in row for row in answer.pair}) == 1
        for found in answer.judged.values()
    ]


def _word(found: Contrast) -> str:
    return found.word if found.best > FLOOR else FELL


def _tally(judged: Sequence[Contrast]) -> str:
    """How often each word, in the order of `WORDS`."""
    words = [_word(each) for each in judged]
    return ", ".join(f"{words.count(word)} {word}" for word in (*WORDS, FELL) if word in words)


def _by_seeds(judged: Sequence[Contrast]) -> str:
    """The tally of what is of enough training seeds for a verdict on the method, and that of the rest."""
    enough = [each for each in judged if each.seeds >= ENOUGH]
    fewer = [each for each in judged if each.seeds < ENOUGH]
    parts = [
        f"{len(group)} comparisons over {told}: {_tally(group)}"
        for group, told in ((enough, f"{ENOUGH} training seeds"), (fewer, "fewer, most of them one pair of networks"))
        if group
    ]
    return "; ".join(parts)


def _against(what: str, asked: Asked, group: Sequence[Question]) -> str:
    judged = _judged(asked, group)
    return f"**{what}**, under the paper's protocol, Defend++ in {_by_seeds(judged)}." if judged else ""


def _parts(asked: Asked, scale: Scale, place: Place) -> str:
    """What is removed in table 1, beside how small the paper's effects are and how much one row varies by its seed."""
    judged = _judged(asked, questions.PARTS)
    if not judged:
        return ""
    published = {row.name: row.published for row in TABLES["table1"].rows}
    effects = [
        abs(published[a][column] - published[b][column])
        for question in questions.PARTS
        for a, b in question.pairs
        for column in question.columns
    ]
    widths = [50 * (each.difference.high - each.difference.low) for each in judged]
    unseen = sum(_word(each) == UNDECIDED for each in judged)
    text = (
        f"**The parts of Defend++** that table 1 removes, in {len(judged)} comparisons: {_tally(judged)}. The effects "
        f"that the paper prints are {min(effects):.1f} to {max(effects):.1f} points, of one training each. "
    )
    by_seed = {column: right("table1", "ours", [column], "transfer", scale, place) for column in ("FGSM", "BIM")}
    spreads = [
        f"{100 * (max(means) - min(means)):.0f} points under {column}"
        for column, found in by_seed.items()
        if len(means := [float(each.mean()) for each in found.values()]) > 1
    ]
    if spreads:
        text += f"“ours” alone differs by {' and '.join(spreads)} from one training seed to another. "
    return text + (
        f"Half of our intervals is {min(widths):.0f} to {max(widths):.0f} points wide: effects as small can be told "
        "from chance neither by the paper's design nor by ours"
        + f", and {unseen} “{UNDECIDED}” are no evidence that a part does nothing." * bool(unseen)
        + "." * (not unseen)
    )


def _with_noise(asked: Asked) -> str:
    judged = _judged(asked, questions.NOISE_ALONE)
    if not judged:
        return ""
    gains = [100 * each.difference.value for each in judged]
    return (
        "**With noise as weak as the paper's** on the training images, Defend++ against noise alone, under the paper's "
        f"protocol, in {len(judged)} comparisons: {_tally(judged)}, by {mean(gains):+.1f} points in the mean."
    )


def _white_box(asked: Asked) -> str:
    judged = _judged(asked, questions.WHITE_BOX)
    if not judged:
        return ""
    fell = sum(_word(each) == FELL for each in judged)
    text = (
        f"**White-box**, all attacks together leave both Defend++ and the undefended row at most {100 * FLOOR:.0f} % "
        f"right in {fell} of {len(judged)} pairs of rows"
        + ": trained as in the paper it is no defence against an attacker who has the gradients" * (fell == len(judged))
        + "."
    )
    baselines = _judged(asked, questions.WHITE_BOX_TRAINED)
    return text + (f" Against adversarial training: {_tally(baselines)}." if baselines else "")


def _numbers(scale: Scale, place: Place) -> str:
    every = reported.held(scale, place)
    ours = [each for each in every if reported.CLAIMED.get(each.row.role) == each.row.role and each.column != "Clean"]
    shown = [each for each in ours if "transfer" in each.measured]
    if not shown:
        return ""
    fits = sum(each.is_within("transfer") for each in shown)
    misfits = reported.misfits(every)
    text = (
        "**The published accuracies of Defend++ under attack** lie in the interval of what we measured under the "
        f"paper's protocol in {fits} of {len(shown)} cells"
    )
    rows = ", ".join(f"“{name}”" for name in dict.fromkeys(each.row.name for each in misfits))
    columns = " and ".join(dict.fromkeys(each.column for each in misfits))
    return text + (
        f". Those of {rows} under {columns} are reached white-box and not under that protocol: the printed tables seem "
        "to mix the two, or to have budgets that the paper does not give, and its margins over these rows rest on it."
        if misfits
        else "."
    )
