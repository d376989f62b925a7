"""Writes what the daemon is made of as CycloneDX: packages of an environment, and the model that comes along.

`python deploy/sbom.py PYTHON FILE`, where PYTHON is the interpreter of the environment (see `make sbom`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from rcm_daemon import __version__
from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.verify import load_verified

ROOT = Path(__file__).parents[1]


def model_component() -> dict[str, object]:
    """Describe the default bundle: its digest is that of the manifest, which names every file's."""
    bundle = load_verified(default_bundle_path())
    manifest = bundle.manifest
    files = [
        {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": file.sha256}]}
        for name, file in sorted(manifest.files.items())
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": f"bundle-{manifest.name}@{manifest.version}",
        "name": manifest.name,
        "version": manifest.version,
        "description": manifest.notice,
        "hashes": [{"alg": "SHA-256", "content": bundle.digest}],
        "components": files,
    }


def main(python: str, target: Path) -> None:
    """Write the file; a document that breaks the schema ends in an error."""
    tool = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    done = subprocess.run(  # noqa: S603
        [*tool, "--pyproject", str(ROOT / "pyproject.toml"), python], check=True, capture_output=True
    )
    document = json.loads(done.stdout)
    document["metadata"]["component"]["version"] = __version__
    document["components"].append(model_component())
    text = json.dumps(document, indent=2) + "\n"
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        sys.exit(f"the document breaks the schema: {fault}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
