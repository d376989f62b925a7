"""`rcm-daemon stacks`: what the journal holds of past stacks, as a list or as files."""

from __future__ import annotations

import csv
import json
import sqlite3
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from pydantic import ValidationError

from rcm_daemon.core.message import StrataMessage
from rcm_daemon.core.rows import CSV_HEADER, csv_rows
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.journal import JOURNAL_FILE, Journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class PastStack:
    """One acquisition of the journal; `result` is its final message (JSON), empty while it is open."""

    instrument: str
    stack_id: str
    acquisition: int
    state: str
    n_slices: int
    n_rejected: int
    bundle_digest: str
    result: str


def read_stacks(state_dir: Path, is_wanted: Callable[[str, str], bool]) -> list[PastStack]:
    """Return the stacks that are wanted by instrument and id, oldest first; the daemon may be running.

    Raises
    ------
    ConfigurationError
        There is no journal, or it cannot be read.
    """
    path = state_dir / JOURNAL_FILE
    if not path.exists():
        raise ConfigurationError([f"the state folder {state_dir} holds no journal"])
    try:
        with closing(Journal(path, read_only=True)) as journal:
            results = journal.results()
            found = []
            for number, fields in sorted(journal.stacks().items()):
                if not is_wanted(fields["instrument"], fields["stack_id"]):
                    continue
                refused = journal.rejections(number)
                found.append(
                    PastStack(
                        fields["instrument"],
                        fields["stack_id"],
                        fields["acquisition"],
                        fields["ended"] if number in results else "open",
                        journal.n_slices(number),
                        max(fields["n_rejected"], len(refused)),
                        fields["bundle_digest"],
                        results.get(number, ""),
                    )
                )
    except sqlite3.DatabaseError as error:
        raise ConfigurationError([f"the journal {path} cannot be read ({error})"]) from error
    return found


def write_json(stacks: list[PastStack], path: str) -> None:
    """Write the final message of each ended stack as a line; `-` is standard output."""
    with ExitStack() as files:
        file = _open(files, path)
        file.writelines(stack.result + "\n" for stack in stacks if stack.result)


def write_csv(stacks: list[PastStack], path: str) -> None:
    """Write a row a slice of each ended stack; `-` is standard output."""
    with ExitStack() as files:
        rows = csv.writer(_open(files, path))
        rows.writerow(("instrument", "acquisition", *CSV_HEADER))
        for stack in stacks:
            if not stack.result:
                continue
            try:
                message = StrataMessage.model_validate_json(stack.result)
            except ValidationError:  # of another version: the keys that matter here are in all of them
                message = StrataMessage.model_construct(**json.loads(stack.result))
            rows.writerows([stack.instrument, stack.acquisition, *row] for row in csv_rows(message))


def table(stacks: list[PastStack]) -> list[str]:
    """Return one line a stack under a line of headings."""
    heads = ("instrument", "stack", "acquisition", "state", "slices", "rejected", "bundle")
    lines = [
        (
            stack.instrument,
            stack.stack_id,
            str(stack.acquisition),
            stack.state,
            str(stack.n_slices),
            str(stack.n_rejected),
            stack.bundle_digest[:12],
        )
        for stack in stacks
    ]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (heads, *lines)]


def _open(files: ExitStack, path: str) -> TextIO:
    if path == "-":
        return sys.stdout
    try:
        return files.enter_context(open(path, "w", encoding="utf-8", newline=""))
    except OSError as error:
        raise ConfigurationError([f"{path} cannot be written ({error.strerror})"]) from error
