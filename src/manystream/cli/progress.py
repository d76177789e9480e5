"""A progress bar for what counts its images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from manystream.cli.output import console
from manystream.data.survey import Progress as Told


@contextmanager
def progress_bar(description: str) -> Iterator[Told]:
    """Show a bar while images are counted; it is gone when all are done.

    Args:
        description: what is being done.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
