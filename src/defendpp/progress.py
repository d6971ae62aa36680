"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many images are done, and of how many."""

EVERY = 60.0
"""Seconds between two lines of a log."""


@contextmanager
def bar() -> Iterator[Progress]:
    """A bar for the piece of work at hand, with the time that it has left; on standard error, as all progress is.

    Where that is no terminal but a file or a pipe, it gets lines instead (`in_lines`).
    """
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield in_lines(lambda line: print(line, file=console.file, flush=True))
        return
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("images"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, transient=True, console=console) as shown:
        task = shown.add_task("", total=None)

        def progress(what: str, done: int, total: int) -> None:
            if shown.tasks[0].description != what:
                shown.reset(task, description=what, total=total, completed=0)
            shown.update(task, completed=done)

        yield progress


def in_lines(say: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress that says a line when `EVERY` seconds have passed since the last, or since a piece of work was begun.

    Short work leaves no lines. What was done when a piece is first told of is not counted into its pace: it may have
    been done before an interruption.
    """
    piece, first, begun, said = "", 0, 0.0, 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal piece, first, begun, said
        now = clock()
        if what != piece:
            piece, first, begun, said = what, done, now, now
        elif now - said >= EVERY and done > first:
            said = now
            left = (now - begun) / (done - first) * (total - done)
            say(f"{what}: {done:,} of {total:,} images, about {spoken(left)} left")

    return progress


def spoken(duration: float) -> str:
    """Seconds as hours and minutes."""
    minutes = round(duration / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
