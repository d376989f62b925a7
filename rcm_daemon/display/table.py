"""A stack in the terminal: a row a slice, a strip along depth, and both boundaries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rcm_daemon.display.stack_view import STRATUM_COLOURS, STRATUM_WORDS, StackView, boundary_sentence

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

# One glyph a stratum, so that the strip reads without colour too.
STRATUM_GLYPHS = ("░", "▒", "█")
_ROWS_PER_BLOCK = 20
_MAX_STRIP = 100


def stack_report(view: StackView, n_rows: int | None = None) -> RenderableType:
    """Render a stack: table, depth strip, boundaries.

    Parameters
    ----------
    n_rows
        Show only this many of the deepest slices in the table, None = all; the strip always shows all.
    """
    title = Text(view.stack_id, style="bold")
    if view.n_slices == 0:
        return Group(title, Text("no slice labelled yet", style="dim"))
    title.append(
        f"  {view.n_slices} slice{'s' * (view.n_slices > 1)}, {view.z_um[0]:.1f} to {view.z_um[-1]:.1f} um",
        style="not bold",
    )
    lines = [Text.assemble("  ", boundary_sentence(view, which), style="bold") for which in (0, 1)]
    return Group(title, SliceTable(view, n_rows), Text(), DepthStrip(view), *lines)


@dataclass(frozen=True)
class SliceTable:
    """A row a slice, in as many blocks side by side as the terminal is wide and the stack is long."""

    view: StackView
    n_rows: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        n = self.view.n_slices
        first = max(0, n - self.n_rows) if self.n_rows is not None else 0
        if first:
            yield Text(f"  {first} shallower slice{'s' * (first > 1)} not shown", style="dim")
        width = self._block(range(first, n)).__rich_measure__(console, options).maximum
        n_blocks = max(
            1, min((options.max_width + 2) // (width + 2), math.ceil((n - first) / _ROWS_PER_BLOCK))
        )
        size = math.ceil((n - first) / n_blocks)
        grid = Table.grid(padding=(0, 2))
        starts = range(first, n, size)
        grid.add_row(*(self._block(range(start, min(start + size, n))) for start in starts))
        yield grid

    def _block(self, rows: range) -> Table:
        view = self.view
        table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
        table.add_column("slice", justify="right")
        table.add_column("z um", justify="right")
        table.add_column("stratum")
        for word in ("epi %", "DEJ %", "derm %"):
            table.add_column(word, justify="right")
        with_flags = any(view.flags[row] for row in rows) if view.flags else False
        if with_flags:
            table.add_column("flags", max_width=24, no_wrap=True, overflow="ellipsis")
        for row in rows:
            label = int(view.labels[row])
            shares = [
                Text(f"{100 * p:.0f}", style=STRATUM_COLOURS[k] if k == label else "dim")
                for k, p in enumerate(view.probabilities[row])
            ]
            cells: list[RenderableType] = [
                str(view.index[row] if view.index else row),
                f"{view.z_um[row]:.1f}",
                Text(STRATUM_WORDS[label], style=f"bold {STRATUM_COLOURS[label]}"),
                *shares,
            ]
            if with_flags:
                cells.append(Text(view.flags[row].replace(",", " "), style="yellow"))
            table.add_row(*cells)
        return table


@dataclass(frozen=True)
class DepthStrip:
    """One line from the shallowest to the deepest slice, coloured by stratum, boundaries marked below."""

    view: StackView

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        z_um = np.asarray(self.view.z_um, float)
        width = max(10, min(_MAX_STRIP, options.max_width - 4))
        start_um, span_um = float(z_um[0]), float(z_um[-1] - z_um[0]) or 1.0
        cells_um = start_um + (np.arange(width) + 0.5) / width * span_um
        nearest = np.abs(cells_um[:, None] - z_um[None, :]).argmin(axis=1)
        strip = Text("  ", no_wrap=True)
        for label in self.view.labels[nearest]:
            strip.append(STRATUM_GLYPHS[int(label)], style=STRATUM_COLOURS[int(label)])
        marks = [" "] * width
        for boundary in self.view.boundaries:
            if boundary.status == "inside":
                place = int((boundary.um - start_um) / span_um * width)
                marks[min(width - 1, max(0, place))] = "▲"
        scale = Text("  ", style="dim", no_wrap=True)
        left, right = f"{z_um[0]:.0f} um", f"{z_um[-1]:.0f} um"
        legend = "  ".join(
            f"{glyph} {word}" for glyph, word in zip(STRATUM_GLYPHS, STRATUM_WORDS, strict=True)
        )
        room = width - len(left) - len(right)
        scale.append(left + (legend.center(room) if len(legend) + 2 <= room else " " * max(1, room)) + right)
        yield strip
        yield Text("  " + "".join(marks), style="bold", no_wrap=True)
        yield scale
