"""Where bundles lie: the default one ships inside the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def default_bundle_path() -> Path:
    """Folder of the bundle that ships with the package."""
    return Path(str(resources.files("rcm_daemon.bundle"))) / "default"


def resolve_bundle(path: Path | str | None = None) -> Path:
    """Turn a `--bundle` option into a folder: the default bundle when nothing is given."""
    return default_bundle_path() if path is None or str(path) == "" else Path(path).expanduser()
