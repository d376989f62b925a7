"""Writes the list of tests into docs/hazards.md, from their marks `hazard("H07")`."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/hazards.md"
BEGINNING = "<!-- what follows is written by `make docs` from the marks -->\n"


def rows() -> list[str]:
    """Return the ids of the page's rows, in its order."""
    return re.findall(r"^\| (H\d\d) \| .* \| .* \| .* \|$", PAGE.read_text(), re.MULTILINE)


def marks() -> dict[str, list[str]]:
    """Return the marked tests by hazard, each as `file::function`."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        for place, hazard in _marks_in(tree, str(path.relative_to(ROOT / "tests"))):
            tests = found.setdefault(hazard, [])
            if place not in tests:
                tests.append(place)
    return dict(sorted(found.items()))


def always_run() -> set[str]:
    """Return the hazards that have a test which is not kept for `make slow`."""
    found = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        slow = {f"f::{name}" for name in _slow_in(tree)}
        found |= {hazard for place, hazard in _marks_in(tree, "f") if place not in slow}
    return found


def _slow_in(tree: ast.AST) -> Iterator[str]:
    """Yield the names of the tests that are marked slow."""
    for node in ast.walk(tree):
        decorators = getattr(node, "decorator_list", [])
        if any(ast.unparse(decorator) == "pytest.mark.slow" for decorator in decorators):
            yield node.name  # type: ignore[attr-defined]


def _marks_in(node: ast.AST, place: str) -> Iterator[tuple[str, str]]:
    """Yield each mark with the innermost test around it, or the file where it stands outside of all."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        place = f"{place}::{node.name}"
    is_mark = (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "hazard"
    )
    if is_mark:
        for argument in node.args:  # type: ignore[attr-defined]
            yield place, ast.literal_eval(argument)
    for child in ast.iter_child_nodes(node):
        yield from _marks_in(child, place)


def drift(rows: Iterable[str], marked: Iterable[str]) -> list[str]:
    """Say what the page and the marks do not have in common, each once, in order; nothing = no drift."""
    rows, marked = set(rows), set(marked)
    return [f"{row} has no test" for row in sorted(rows - marked)] + [
        f"{mark} marks a test but has no row" for mark in sorted(marked - rows)
    ]


def listing() -> str:
    """Return the page's last part."""
    lines = ["", "| id | tests |", "|---|---|"]
    lines += [
        f"| {hazard} | {'<br>'.join(f'`{test}`' for test in tests)} |" for hazard, tests in marks().items()
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the whole page as it should be."""
    written, found, _ = PAGE.read_text().partition(BEGINNING)
    assert found, "the page has lost its mark"
    return written + found + listing()


if __name__ == "__main__":
    PAGE.write_text(page())
