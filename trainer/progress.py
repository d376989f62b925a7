"""One progress bar for every long step: what, how far, the latest numbers, time left."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress_bar(title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on stderr while the block runs.

    Parameters
    ----------
    title
        What is being done.
    total
        Number of units of the whole.
    unit
        Plural word for what is counted.

    Yields
    ------
    Callable
        `advance(n, text)`: n further units are done; text (loss, accuracy ...) stands behind the bar.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, text="")

        def advance(n: int, text: str) -> None:
            progress.update(task, advance=n, text=text)

        yield advance
