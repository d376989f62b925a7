"""The trainer's commands, run in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from trainer.cli import app

if TYPE_CHECKING:
    from pathlib import Path

CNN_OPTIONS = (
    "--width",
    "0.125",
    "--size",
    "75",
    "--batch-size",
    "16",
    "--precision",
    "full",
    "--threads",
    "1",
)


def run(*arguments: str | Path) -> str:
    """Run one command and give what it wrote on stdout; its exception, if it has one, is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout
