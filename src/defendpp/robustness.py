"""Beyond the paper, as data: networks that are to resist an attacker who knows everything, and what they are put to.

Rows, budgets and recipes in the terms of `paper`. All defences but adversarial training see clean images only, and all
networks of a table have the same architecture, but for the table of widths. Recipes were chosen on validation images
(`docs/robustness.md`).
"""

from dataclasses import replace
from functools import cache, partial

from defendpp import paper, threats
from defendpp.adaptive import against_decoder
from defendpp.attacks.gradient_sign import Norm
from defendpp.paper import Column, Protocol, Row, Scale, Table
from defendpp.recipe import Recipe
from defendpp.threats import Attack

DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
"""What is measured here, and what people call it."""
WHITE_BOX: tuple[Protocol, ...] = ("white-box",)
NOISE = {"mnist": 0.5, "cifar10": 0.12}
"""Standard deviation of the noise, in pixel units."""
CONSISTENCY = {"mnist": 20.0, "cifar10": 10.0}
"""Its weight."""
LINF = {"mnist": (0.1, 0.2, 0.3), "cifar10": (2 / 255, 4 / 255, 8 / 255)}
L2 = {"mnist": (1.0, 1.5, 2.0), "cifar10": (0.25, 0.5)}
MAIN = {"mnist": 0.2, "cifar10": 2 / 255}
"""The L∞ budget that the figures of record are for; on CIFAR-10 AutoAttack also at L2 0.5."""
RADII = {"mnist": (0.5, 1.0, 1.5), "cifar10": (0.1, 0.2, 0.3)}
"""Larger ones are out of reach of so many copies, whatever the network."""
OVER_SEEDS = ("L∞ 0.2",)
"""Budgets for which every training seed is attacked; for the others `paper.ONE_SEED`."""
RECORD_SEED = 1
"""The training seed of the networks that the figures of record are of, and that are to be used."""
white_box = partial(Column, protocols=WHITE_BOX)
ROBUST_ON = {"mnist": 1000, "cifar10": 500}
RECORDED_ON = {"mnist": 10_000, "cifar10": 1000}
CERTIFIED_ON, COPIES = {"mnist": 500, "cifar10": 200}, {"mnist": 20_000, "cifar10": 10_000}
"""Images that are certified, and noisy copies of each."""


def named(epsilon: float) -> str:
    """A budget as people write it: 0.2, or 4/255."""
    return f"{round(255 * epsilon)}/255" if epsilon < 0.05 else f"{epsilon:g}"


def main(data: str) -> str:
    """The name of the budget that the figures of record are for."""
    return f"L∞ {named(MAIN[data])}"


def budgets(data: str) -> dict[str, tuple[Norm, float]]:
    """Norm and budget in pixel units, by the name of the column."""
    made: dict[str, tuple[Norm, float]] = {f"L∞ {named(each)}": ("linf", each) for each in LINF[data]}
    return made | {f"L2 {each:g}": ("l2", each) for each in L2[data]}


def _robust(data: str) -> Table:
    """Every row under the cascade at every budget."""
    one = (paper.ONE_SEED[data],)
    columns = (
        white_box("Clean", "Clean"),
        *(
            white_box(name, name, images=ROBUST_ON[data], seeds=() if name in OVER_SEEDS else one)
            for name in budgets(data)
        ),
    )
    is_digits = data == "mnist"  # photographs are dear: the parts of the decoder are told apart on digits
    rows = (
        Row("no defence", "none", {}),
        *((Row("0/1 images", "0/1 images", {}),) if is_digits else ()),
        Row("Defend++", "ours", {}),
        Row("noise", "loud", {}),
        Row("noise + decoder", "loud, decoder", {}),
        Row("noise + consistency", "steady", {}),
        *((Row("0/1 images + noise", "0/1 images, loud", {}),) if is_digits else ()),
        *((Row("noise, twice as long", "loud, longer", {}),) if is_digits else ()),
        *((Row("noise + consistency, twice as long", "steady, longer", {}),) if is_digits else ()),
        Row("Adv. FGSM", "adv-fgsm", {}),
        Row("Adv. DDN", "adv-ddn", {}),
        *((Row("Adv. PGD", "adv-pgd", {}),) if is_digits else ()),
    )
    title = f"{DATA[data]}: the attacker knows everything; the cascade at every budget"
    return Table(title, data, rows, columns, paper.SEEDS if is_digits else one)


def _parts(data: str) -> Table:
    """What each part of a recipe adds to noise alone, or training for longer, at the main budget.

    Two copies of each image take twice the passes, so that noise trains for longer beside consistency.
    """
    rows = (
        Row("noise", "loud", {}),
        Row("noise, twice as long", "loud, longer", {}),
        Row("noise, four times as long", "loud, longest", {}),
        Row("noise + decoder", "loud, decoder", {}),
        Row("noise + decoder, full scale only", "loud, full scale", {}),
        Row("noise + decoder without H modules", "loud, hourglass", {}),
        Row("noise + consistency", "steady", {}),
        Row("noise + consistency, twice as long", "steady, longer", {}),
        Row("noise + consistency + decoder", "steady, decoder", {}),
    )
    columns = white_box("Clean", "Clean"), white_box(main(data), main(data), images=ROBUST_ON[data])
    return Table(f"{DATA[data]}: what each part adds to noise; the cascade", data, rows, columns, paper.SEEDS)


def _record(data: str) -> Table:
    """The main rows, on photographs the recommended one alone, under every attack there is, and certified."""
    few, is_digits = ROBUST_ON[data], data == "mnist"
    also = tuple(f"{name}, {main(data)}" for name in ("Square", "AutoAttack"))
    columns = (
        white_box("Clean", "Clean"),
        white_box(f"Cascade, {main(data)}", main(data), images=RECORDED_ON[data]),
        white_box(f"the same on {few:,} images", main(data), images=few),
        *(white_box(name, name, images=few) for name in also),
        _worst(data, also),
        *(() if is_digits else (white_box("AutoAttack, L2 0.5", "AutoAttack, L2 0.5", images=few),)),
        *(white_box(f"certified L2 {radius:g}", "Certified", images=CERTIFIED_ON[data], radius=radius)
          for radius in RADII[data]),
    )  # fmt: skip
    rows = (
        Row("noise + consistency", "steady", {}),
        *((Row("noise + consistency, twice as long", "steady, longer", {}),) if is_digits else ()),
        *((Row("noise", "loud", {}),) if is_digits else ()),
    )
    return Table(f"{DATA[data]}: figures of record", data, rows, columns, (RECORD_SEED,))


def _adaptive(data: str) -> Table:
    """Networks that have a decoder, attacked through it too."""
    also = tuple(f"{name}, {main(data)}" for name in ("bottleneck", "decoder"))
    columns = *(white_box(name, name, images=ROBUST_ON[data]) for name in (main(data), *also)), _worst(data, also)
    rows = (Row("noise + decoder", "loud, decoder", {}), Row("noise + consistency + decoder", "steady, decoder", {}))
    return Table(f"{DATA[data]}: attacks that use the decoder", data, rows, columns, (RECORD_SEED,))


def _worst(data: str, also: tuple[str, ...]) -> Column:
    """An image counts where it resists the cascade, these attacks and what PGD makes on the undefended network."""
    name, twin = f"worst of all, {main(data)}", f"PGD, {main(data)}"
    return white_box(name, main(data), also=also, images=ROBUST_ON[data], twin=twin)


def _widths(data: str) -> Table:
    """What more of the same network brings."""
    few, is_digits = ROBUST_ON[data], data == "mnist"
    measured: list[tuple[str, str, int | None]] = [("Clean", "Clean", None)]
    if is_digits:
        measured += [(f"{main(data)}, all images", main(data), RECORDED_ON[data])]
        measured += [(name, name, few) for name in (main(data), f"AutoAttack, {main(data)}", "L2 1.5")]
    else:
        measured += [(name, name, few) for name in (main(data), "L2 0.5")]
    return Table(
        f"{DATA[data]}: noise + consistency at several widths; the cascade",
        data,
        tuple(Row(f"width {width}", f"steady, width {width}", {}) for width in WIDTHS[data]),
        tuple(white_box(name, attack, images=n) for name, attack, n in measured),
        (RECORD_SEED,),
    )


WIDTHS = {"mnist": (16, 32), "cifar10": (8, 16, 32)}
"""Of the rows of these tables, at either scale; at "cpu" all others are 16 wide."""
OF_WIDTH = {f"steady, width {width}": width for widths in WIDTHS.values() for width in widths}
"""Their roles."""
TABLES: dict[str, Table] = {
    **{f"robust-{data}": _robust(data) for data in DATA},
    "parts-mnist": _parts("mnist"),
    **{f"record-{data}": _record(data) for data in DATA},
    "adaptive-mnist": _adaptive("mnist"),
    **{f"width-{data}": _widths(data) for data in DATA},
}


def attacks(data: str) -> dict[str, Attack]:
    """`paper.attacks`, and those of this module's tables by the names of their columns."""
    known = paper.attacks(data)
    if data not in DATA:
        return known
    epsilon = MAIN[data]
    return {
        **known,
        **{name: threats.cascade(size, norm=norm) for name, (norm, size) in budgets(data).items()},
        f"bottleneck, {main(data)}": against_decoder([], epsilon, raised="bottleneck"),
        f"decoder, {main(data)}": against_decoder([], epsilon, raised="reconstruction"),
        f"PGD, {main(data)}": threats.pgd(epsilon, steps=100, loss="margin"),
        f"Square, {main(data)}": threats.square(epsilon),
        f"AutoAttack, {main(data)}": threats.auto_attack(epsilon),
        "AutoAttack, L2 0.5": threats.auto_attack(0.5, norm="l2"),
        "Certified": threats.smoothing(NOISE[data], samples=COPIES[data]),
    }


def fitting(attack: Attack, recipe: Recipe) -> Attack:
    """What tells of a network that was trained so what `attack` tells of others.

    In front of a threshold an L2 budget buys a few pixels that cross it, and steps along a gradient spread it over all,
    so that they fail for the wrong reason: pixel flips take their place.
    """
    if attack.norm == "l2" and attack.epsilon is not None and recipe.defence == "binarise":
        return threats.pixel_flips(attack.epsilon)
    return attack


@cache
def recipe(role: str, data: str, network: str, scale: Scale, seed: int) -> Recipe:
    """How the network of a role is trained: `paper.recipe`'s roles, and those of this module's tables.

    Raises `ValueError` for a role that there is not.
    """
    if role not in ROLES:
        return paper.recipe(role, data, network, scale, seed)
    plain = paper.recipe("none", data, network, scale, seed)
    if role == "0/1 images":
        return replace(plain, defence="binarise")
    # noise needs many steps rather than large batches; gradients of noisy images are large at first
    # fewer epochs than the study's where two copies of each photograph would double their cost
    epochs = 12 if (scale, data) == ("cpu", "cifar10") else plain.epochs
    loud = replace(plain, noise=NOISE[data], batch_size=64, epochs=epochs, clip_norm=1.0, keep="last")
    decoder = replace(
        loud, defence="defend", shared_blocks=paper.recipe("ours", data, network, scale, seed).shared_blocks
    )
    steady = replace(loud, consistency=CONSISTENCY[data])
    return {
        "loud": loud,
        "loud, longer": replace(loud, epochs=2 * loud.epochs),
        "loud, longest": replace(loud, epochs=4 * loud.epochs),
        "loud, decoder": decoder,
        "loud, full scale": replace(decoder, scale_weight=0.0),
        "loud, hourglass": replace(decoder, decoder="hourglass"),
        "steady": steady,
        "steady, longer": replace(steady, epochs=2 * steady.epochs),
        "0/1 images, loud": replace(loud, defence="binarise"),
        "steady, decoder": replace(decoder, consistency=steady.consistency),
        **{name: replace(steady, width=width) for name, width in OF_WIDTH.items()},
    }[role]


ROLES = ("0/1 images", "0/1 images, loud", "loud", "loud, longer", "loud, longest", "loud, decoder",
         "loud, full scale", "loud, hourglass", "steady", "steady, longer", "steady, decoder",
         *OF_WIDTH)  # fmt: skip
