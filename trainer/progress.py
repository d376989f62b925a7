"""One progress bar for every long step: what, how far, the latest numbers, time left.

Within `whole_run` a step's bar stands below the bar of the whole, and moves it by its share.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILE_WIDTH = 120
"""Columns of a line where no terminal says how many it has."""
LONGEST_RUN_S = 7 * 86_400.0
_runs: list[WholeRun] = []


class WholeRun:
    """A run of many steps, each worth an estimated number of seconds.

    Parameters
    ----------
    progress
        Where the bars stand.
    title
        What is being done.
    total_s
        Estimated seconds of all steps; only their proportions count.
    """

    def __init__(self, progress: Progress, title: str, total_s: float) -> None:
        self.progress = progress
        self._task = progress.add_task(title, total=total_s, unit="", text="")
        self._done_s, self._step_s = 0.0, 0.0

    def begin(self, step: str, estimated_s: float) -> None:
        """Say that the step before is done and this one begins."""
        self._done_s += self._step_s
        self._step_s = estimated_s
        self.progress.update(self._task, completed=self._done_s, text=step)

    def move(self, share: float) -> None:
        """Say that this share of the current step is done."""
        self.progress.update(self._task, completed=self._done_s + self._step_s * min(share, 1.0))


@contextmanager
def whole_run(title: str, total_s: float) -> Iterator[WholeRun]:
    """Show one bar for a run of many steps, above the bars of its steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    # Speed is taken over the whole run: its steps move the bar in their own ways.
    with Progress(*columns, console=_console(), speed_estimate_period=LONGEST_RUN_S) as progress:
        _runs.append(WholeRun(progress, title, total_s))
        try:
            yield _runs[-1]
            _runs[-1].begin("", 0.0)
        finally:
            _runs.pop()


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
    if _runs:
        with _below(_runs[-1], title, total) as advance:
            yield advance
        return
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
    with Progress(*columns, console=_console()) as progress:
        task = progress.add_task(title, total=total, text="")

        def advance(n: int, text: str) -> None:
            progress.update(task, advance=n, text=text)

        yield advance


def _console() -> Console:
    return Console(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH)


@contextmanager
def _below(run: WholeRun, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    task = run.progress.add_task(title, total=total, text="")
    n_done = 0

    def advance(n: int, text: str) -> None:
        nonlocal n_done
        n_done += n
        run.progress.update(task, advance=n, text=text)
        run.move(n_done / max(total, 1))

    try:
        yield advance
    finally:
        run.progress.remove_task(task)
