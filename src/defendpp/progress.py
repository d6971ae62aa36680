"""Progress of long work on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many images are done, and of how many."""


@contextmanager
def bar() -> Iterator[Progress]:
    """A bar for the piece of work at hand, with the time that it has left."""
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("images"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, transient=True) as shown:
        task = shown.add_task("", total=None)

        def progress(what: str, done: int, total: int) -> None:
            if shown.tasks[0].description != what:
                shown.reset(task, description=what, total=total, completed=0)
            shown.update(task, completed=done)

        yield progress
