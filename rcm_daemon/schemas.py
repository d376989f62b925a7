"""JSON Schemas of messages and settings, generated from the models that enforce them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rcm_daemon.core.acknowledgement import Ack
from rcm_daemon.core.message import StrataMessage
from rcm_daemon.core.records import Heartbeat, SliceHeader, StackEnd, StackStart
from rcm_daemon.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

_MODELS: dict[str, type[BaseModel]] = {
    "rcm-slice-1.stack_start": StackStart,
    "rcm-slice-1.slice": SliceHeader,
    "rcm-slice-1.stack_end": StackEnd,
    "rcm-slice-1.heartbeat": Heartbeat,
    "rcm-ack-1": Ack,
    "rcm-strata-1": StrataMessage,
    "settings": Settings,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Return each schema by name; of messages every key is required."""
    found = {}
    for name, model in _MODELS.items():
        schema = model.model_json_schema(by_alias=True)
        if model is Settings:
            schema["properties"]["state_dir"].pop("default", None)  # depends on the machine
        else:
            schema["required"] = list(schema["properties"])
        found[name] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return found


def write_schemas(folder: Path) -> None:
    """Write `<name>.json` for each schema."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
