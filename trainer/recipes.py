"""Recipes by name, with what an option changes in them."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import DataclassInstance

    Recipe = TypeVar("Recipe", bound=DataclassInstance)

Preset = TypeVar("Preset")


def named(presets: Mapping[str, Preset], name: str) -> Preset:
    """Take a preset by name.

    Raises
    ------
    DataSetError
        If there is none of that name.
    """
    if name not in presets:
        raise DataSetError(f"a preset must be one of {', '.join(presets)}, got {name}")
    return presets[name]


def told(recipe: DataclassInstance) -> dict[str, Any]:
    """Return the fields that are not at their default: one added later changes nothing for older recipes."""
    defaults = {field.name: field.default for field in fields(recipe)}
    return {name: value for name, value in asdict(recipe).items() if value != defaults[name]}


def changed(recipe: Recipe, **options: Any) -> Recipe:
    """Change the fields that are not None, as the options of a command line are when they are not given."""
    return replace(recipe, **{name: value for name, value in options.items() if value is not None})
