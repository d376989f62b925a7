"""What `replay` writes: tables to the terminal, JSON lines, CSV rows and pictures."""

from __future__ import annotations

import csv
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rcm_daemon.core.rows import CSV_HEADER, csv_rows
from rcm_daemon.display.message_view import view_of
from rcm_daemon.display.picture import draw_stack
from rcm_daemon.display.table import stack_report
from rcm_daemon.errors import ConfigurationError, RcmError, StackFileError
from rcm_daemon.readers import open_stack
from rcm_daemon.replay import Replayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rcm_daemon.bundle.manifest import Manifest
    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.core.estimator import EstimatorParameters
    from rcm_daemon.core.message import StrataMessage
    from rcm_daemon.core.pipeline import Estimation
    from rcm_daemon.display.stack_view import StackView
    from rcm_daemon.readers import RecordedStack
    from rcm_daemon.replay import Replayed


MOST_UNWRITTEN = 2
"""Of so many stacks the results wait to be written at most."""
DIM = (
    "rcm-daemon: the 16-bit slices of {} have grey levels far below 65535: if their camera has fewer bits, "
    "give its full scale with --max-value, 4095 for 12"
)


@dataclass(frozen=True)
class ReplayOutputs:
    """Where results go besides the terminal; `json` may be `-` for standard output."""

    json: str | None = None
    live_json: Path | None = None
    csv: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing could be written to, before anything is replayed."""
        files = [self.json if self.json != "-" else None, self.live_json, self.csv, self.plot]
        demand_folders(*(Path(file) for file in files if file is not None))


def demand_folders(*files: Path) -> None:
    """Refuse files to be written whose folder is not there.

    Raises
    ------
    ConfigurationError
        With every one of them.
    """
    faults = [
        f"{file} needs a folder that is there, got {file.parent}"
        for file in files
        if not file.parent.is_dir()
    ]
    if faults:
        raise ConfigurationError(faults)


def replay_all(
    paths: Sequence[Path],
    networks: Networks,
    outputs: ReplayOutputs,
    *,
    estimation: Estimation | None = None,
    z_step_um: float | None = None,
    pixel_size_um: float | None = None,
    series: int | None = None,
    max_value: int | None = None,
    console: Console | None = None,
) -> int:
    """Replay each stack and write what was asked for; returns how many stacks could not be replayed.

    A stack that cannot be read is one sentence on standard error, and the next one follows. What is said of a
    stack is written while the next one is embedded; to `console` where one is given.
    """
    to_stdout = outputs.json == "-"
    console = console or Console(stderr=to_stdout)
    live, thumbnails = outputs.live_json is not None, outputs.plot is not None
    replayer = Replayer(networks, estimation, live=live, thumbnails=thumbnails)
    n_failed = 0
    with ExitStack() as files:
        json_file = sys.stdout if to_stdout else _open(files, outputs.json)
        live_file = _open(files, outputs.live_json)
        csv_file = _open(files, outputs.csv)
        rows = csv.writer(csv_file) if csv_file else None
        if rows:
            rows.writerow(CSV_HEADER)
        bar = files.enter_context(_bar(console))
        task = bar.add_task("", total=len(paths))
        writer = files.enter_context(ThreadPoolExecutor(1))
        written: deque[Future[None]] = deque()

        def write(replayed: Replayed) -> None:
            final = replayed.final
            if json_file:
                print(final.to_json(), file=json_file, flush=True)
            if live_file:
                live_file.writelines(message.to_json() + "\n" for message in replayed.live)
            if rows:
                rows.writerows(csv_rows(final))
            view = with_bundle(view_of(final), networks.manifest, networks.estimator_parameters)
            console.print(stack_report(view))
            if replayed.is_dim:
                print(DIM.format(final.stack_id), file=sys.stderr)
            if outputs.plot:
                plot = _plot_path(outputs.plot, final, several=len(paths) > 1)
                _draw(view, replayed, plot)
                console.print(f"picture: {plot}")

        def opened() -> Iterator[RecordedStack | RcmError]:
            for path in paths:
                try:
                    stack = open_stack(
                        path,
                        z_step_um=z_step_um,
                        pixel_size_um=pixel_size_um,
                        series=series,
                        max_value=max_value,
                    )
                except RcmError as error:
                    yield error
                else:
                    yield stack

        def advance(stack: RecordedStack) -> None:
            bar.update(task, advance=1 / stack.n_slices, description=stack.path.name)

        for number, outcome in enumerate(replayer.replay_each(opened(), advance), start=1):
            bar.update(task, completed=number)
            if isinstance(outcome, RcmError):
                written.append(writer.submit(print, f"rcm-daemon: {outcome}", file=sys.stderr))
                n_failed += 1
            else:
                written.append(writer.submit(write, outcome))
            if len(written) > MOST_UNWRITTEN:
                written.popleft().result()
        for one in written:
            one.result()
    return n_failed


def with_bundle(view: StackView, manifest: Manifest, estimator: EstimatorParameters | None) -> StackView:
    """Say with a stack which bundle labelled it, and whether anybody calibrated its intervals."""
    notice = f"{manifest.name} {manifest.version}: {manifest.notice}"
    return replace(view, notice=notice, is_calibrated=estimator is None or estimator.is_calibrated)


def _draw(view: StackView, replayed: Replayed, path: Path) -> None:
    by_index = {index: place for place, index in enumerate(replayed.final.index)}
    thumbnails = sorted(enumerate(replayed.thumbnails), key=lambda pair: by_index[pair[0]])
    draw_stack(view, [image for _, image in thumbnails], path)


def _bar(console: Console) -> Progress:
    """Show how far an archive has been replayed and how long it still takes; on a terminal only."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    terminal = console if console.is_terminal else Console(stderr=True)
    return Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)


def _open(files: ExitStack, path: str | Path | None) -> TextIO | None:
    if path is None:
        return None
    try:
        return files.enter_context(open(path, "w", encoding="utf-8", newline=""))
    except OSError as error:
        raise StackFileError(f"{path} cannot be written ({error.strerror})") from error


def _plot_path(path: Path, message: StrataMessage, *, several: bool) -> Path:
    """Name a picture after its stack where there are several: FILE-<stack>.png."""
    if not several:
        return path
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in message.stack_id)
    again = f"-{message.acquisition}" if message.acquisition > 1 else ""
    return path.with_name(f"{path.stem}-{safe}{again}{path.suffix}")
