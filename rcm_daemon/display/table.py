"""A stack in the terminal: a row a slice, a strip along depth, and both boundaries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.segment import Segment
from rich.text import Text

from rcm_daemon.display.stack_view import STRATUM_COLOURS, STRATUM_WORDS, StackView, boundary_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

# One glyph a stratum, so that the strip reads without colour too.
STRATUM_GLYPHS = ("░", "▒", "█")
_HEAD = ("slice", "z um", "stratum", "epi %", "DEJ %", "derm %")
_SHARES = slice(3, 6)
"""Columns that are left out where there is no room for them: flags say more."""
_MAX_CELL = 24
_GAP, _BLOCK_GAP = "  ", "   "
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
class _Cell:
    """A word of the table and its style; numbers stand to the right of their column, words to the left."""

    word: str
    style: str = ""
    is_word: bool = False

    def set_in(self, width: int) -> str:
        """Return it as wide as its column, shortened where it is wider."""
        if len(self.word) > width:
            return self.word[: width - 1] + "…"
        return self.word.ljust(width) if self.is_word else self.word.rjust(width)


@dataclass(frozen=True)
class SliceTable:
    """A row a slice, in as many blocks side by side as the terminal is wide and the stack is long.

    Lines are set here: laid out by the library, nested tables of 64 slices took a quarter of what the CNN
    takes for them.
    """

    view: StackView
    n_rows: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        n = self.view.n_slices
        first = max(0, n - self.n_rows) if self.n_rows is not None else 0
        if first:
            yield Text(f"  {first} shallower slice{'s' * (first > 1)} not shown", style="dim")
        head = [_Cell(word, "dim", word == "stratum") for word in _HEAD]
        if any(self.view.flags[first:]):
            head.append(_Cell("flags", "dim", is_word=True))
        rows = [head, *(self._row(row)[: len(head)] for row in range(first, n))]
        if _width(_widths(rows)) > options.max_width:
            for row in rows:
                del row[_SHARES]
        widths = _widths(rows)
        widths[-1] = max(1, widths[-1] - max(0, _width(widths) - options.max_width))
        width, (head, *rows) = _width(widths), rows
        room = options.max_width + len(_BLOCK_GAP)
        n_blocks = max(1, min(room // (width + len(_BLOCK_GAP)), math.ceil((n - first) / _ROWS_PER_BLOCK)))
        size = math.ceil((n - first) / n_blocks)
        blocks = [[head, *rows[start : start + size]] for start in range(0, n - first, size)]
        styles = {cell.style: console.get_style(cell.style) for row in (head, *rows) for cell in row}
        for lines in zip_longest(*blocks):
            line: list[Segment] = []
            for number, row in enumerate(lines):
                for k, (cell, width) in enumerate(zip(row or (), widths, strict=False)):
                    gap = _GAP if k else _BLOCK_GAP * (number > 0)
                    line.append(Segment(gap + cell.set_in(width), styles[cell.style]))
            yield from Segment.adjust_line_length(line, options.max_width, pad=False)
            yield Segment.line()

    def _row(self, row: int) -> list[_Cell]:
        view = self.view
        label = int(view.labels[row])
        colour = STRATUM_COLOURS[label]
        return [
            _Cell(str(view.index[row] if view.index else row)),
            _Cell(f"{view.z_um[row]:.1f}"),
            _Cell(STRATUM_WORDS[label], f"bold {colour}", is_word=True),
            *(
                _Cell(f"{100 * share:.0f}", colour if k == label else "dim")
                for k, share in enumerate(view.probabilities[row])
            ),
            _Cell(view.flags[row].replace(",", " ") if view.flags else "", "yellow", is_word=True),
        ]


def _widths(rows: Sequence[Sequence[_Cell]]) -> list[int]:
    """Return the width of each column."""
    return [min(_MAX_CELL, max(len(cell.word) for cell in column)) for column in zip(*rows, strict=True)]


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


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
