"""`make sbom` names what the daemon is made of, as it is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib

from unit_file import ROOT

from rcm_daemon import __version__
from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.verify import load_verified


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_and_the_model_are_named_with_their_versions(tmp_path):
    python = os.environ.get("BASE_PYTHON") or sys.executable
    command = [sys.executable, str(ROOT / "deploy/sbom.py"), python, str(tmp_path / "sbom/file.json")]
    subprocess.run(command, check=True, timeout=100)
    document = json.loads((tmp_path / "sbom/file.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    product = document["metadata"]["component"]
    assert (product["name"], product["version"]) == ("rcm-daemon", __version__)
    versions = {normal(part["name"]): part["version"] for part in document["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {normal(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in project["dependencies"]}
    for name in wanted - {"onnxruntime", "onnxruntime-gpu"}:
        assert versions[name] == importlib.metadata.version(name)
    assert {"onnxruntime", "onnxruntime-gpu"} & versions.keys()
    (model,) = [part for part in document["components"] if part["type"] == "machine-learning-model"]
    bundle = load_verified(default_bundle_path())
    assert model["hashes"] == [{"alg": "SHA-256", "content": bundle.digest}]
    assert {file["name"] for file in model["components"]} == bundle.files.keys()


def test_the_makefile_runs_it():
    assert "deploy/sbom.py $(BASE)/bin/python dist/rcm-daemon.cdx.json" in (ROOT / "Makefile").read_text()
