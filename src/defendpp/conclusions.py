"""What the study concludes: a paragraph for each group of questions, counted from their answers. Nothing is typed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from defendpp import paper, questions, reported
from defendpp.findings import FLOOR, WORDS, Answer, Contrast, Question
from defendpp.paper import Scale
from defendpp.reported import Held
from defendpp.study import TABLES

Asked = Mapping[Question, Sequence[Answer]]
FELL = "with hardly an image left on either side"
"""Instead of a word, where neither row has more than `FLOOR` right."""


def conclusions(asked: Asked, every: Sequence[Held], scale: Scale, larger: str = "") -> list[str]:
    """One paragraph each, in Markdown: from the answers, from `reported.held`, from `reported.larger_budget`.

    Of what was not measured nothing is said.
    """
    told = [
        _undefended(asked, scale),
        _parts(asked),
        _baselines(asked, every, larger),
        _counted(
            "**Noise as weak as the paper's** on the training images, under the paper's protocol. Defend++ with it "
            "against noise alone",
            _judged(asked, questions.NOISE_ALONE),
        ),
        _counted("**Defend++ with such noise** against Defend++ without", _judged(asked, questions.NOISE)),
        _white_box(asked),
        _counted(
            "**White-box, against adversarial training**, under all attacks together, Defend++ resists",
            _judged(asked, questions.WHITE_BOX_TRAINED),
        ),
        _counted(
            "**White-box, through its purifier**, ComDefend against an undefended network, attack by attack",
            [each for row, each in _of_pairs(asked, questions.WHITE_BOX_PURIFIED) if row == "ComDefend"],
        ),
        _numbers(every),
    ]
    return [each for each in told if each]


def _of_pairs(asked: Asked, group: Iterable[Question]) -> Iterator[tuple[str, Contrast]]:
    """Every difference that a verdict of these questions is of, with its first row. Under transferred images of
    minimal norm, and of attacks that failed on their own source, more or less right says nothing."""
    for question in group:
        ignored = questions.FARTHER if question.protocol == "transfer" else ()
        for answer in asked[question]:
            for column, found in answer.judged.items():
                if column not in (*ignored, *answer.weak):
                    yield answer.pair[0], found


def _judged(asked: Asked, group: Iterable[Question]) -> list[Contrast]:
    return [found for _, found in _of_pairs(asked, group)]


def _word(found: Contrast) -> str:
    return found.word if found.best > FLOOR else FELL


def _tally(judged: Sequence[Contrast]) -> str:
    """How often each word, by the number of training seeds; a comparison is a pair of rows under one attack."""
    parts = []
    for seeds in sorted({each.seeds for each in judged}, reverse=True):
        words = [_word(each) for each in judged if each.seeds == seeds]
        counts = ", ".join(f"{words.count(word)} {word}" for word in (*WORDS, FELL) if word in words)
        of_seeds = f"over {seeds} training seeds" if seeds > 1 else "of one pair of networks"
        parts.append(f"in {len(words)} comparison{'s' * (len(words) > 1)} {of_seeds} {counts}")
    return "; ".join(parts)


def _counted(what: str, judged: Sequence[Contrast]) -> str:
    return f"{what}: {_tally(judged)}." if judged else ""


def _undefended(asked: Asked, scale: Scale) -> str:
    """Between rows that both descend from the source or both do not: its images do more harm to its descendants."""
    alike = {
        question: [
            each for each in asked[question] if len({_descends(question.table, row, scale) for row in each.pair}) == 1
        ]
        for question in questions.UNDEFENDED
    }
    return _counted(
        "**Against undefended networks that are not the source**, under the paper's protocol, Defend++ resists",
        _judged(alike, questions.UNDEFENDED),
    )


def _descends(table: str, row: str, scale: Scale) -> bool:
    """Whether a row starts from the source's weights; with a pretrained network all do."""
    of_row = next(each for each in TABLES[table].rows if each.name == row)
    recipe = paper.recipe(of_row.role, TABLES[table].data, of_row.network, scale, paper.SEEDS[0])
    return recipe.start is not None or recipe.pretrained


def _parts(asked: Asked) -> str:
    """What is removed in table 1, and whether effects as small as the paper's could have been seen."""
    judged = _judged(asked, questions.PARTS)
    if not judged:
        return ""
    published = {row.name: row.published for row in TABLES["table1"].rows}
    effects = [
        (abs(published[a][column] - published[b][column]), 50 * (found.difference.high - found.difference.low))
        for question in questions.PARTS
        for answer in asked[question]
        for a, b in [answer.pair]
        for column, found in answer.judged.items()
    ]
    unseen = sum(effect < half for effect, half in effects)
    sizes = [effect for effect, _ in effects]
    return (
        f"**The parts of Defend++** that table 1 removes, with them against without: {_tally(judged)}. The effects "
        f"that the paper prints here, without intervals, are {min(sizes):.1f} to {max(sizes):.1f} points; {unseen} of "
        f"{len(effects)} are smaller than half the width of our interval, and could not be seen"
        + ": “undecided” is no evidence that a part does nothing." * (unseen > 0)
        + "." * (unseen == 0)
    )


def _baselines(asked: Asked, every: Sequence[Held], larger: str) -> str:
    judged = _judged(asked, questions.BASELINES)
    text = _counted(
        "**Against adversarial training and ComDefend**, under the paper's protocol, Defend++ resists", judged
    )
    cells = reported.under_steps(every)
    if not text or not cells:
        return text
    return (
        f"{text} Of the numbers that the paper prints of these defences under {' and '.join(reported.STEPS)}, "
        f"{len(reported.below(cells))} of {len(cells)} lie below what we measured under its protocol, "
        f"{len(reported.nearer(cells))} nearer to white-box accuracy; its margins over them rest on these."
        + f" {larger}"
        * bool(larger)
    )


def _white_box(asked: Asked) -> str:
    judged = _judged(asked, questions.WHITE_BOX)
    if not judged:
        return ""
    fell = sum(_word(each) == FELL for each in judged)
    return (
        "**White-box**, under all attacks together, Defend++ against what differs from it in the decoder, the noise or "
        f"both: {_tally(judged)}."
        + " None of these networks resists an attacker who has the gradients."
        * (fell == len(judged) > 1)
    )


def _numbers(every: Sequence[Held]) -> str:
    printed = [each for each in every if each.row.role in reported.CLAIMED and each.is_printed]
    if not any("transfer" in each.measured and each.column != "Clean" for each in printed):
        return ""
    return (
        "**The published accuracies of Defend++ under attack** lie in the interval of what we measured under the "
        f"paper's protocol in {reported.within(printed, 'transfer')}."
    )
