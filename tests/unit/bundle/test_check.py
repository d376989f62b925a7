"""`check`: one item per promise, and the right one fails."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_bundle import cnn_bytes, rcn_bytes, write_bundle

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.location import default_bundle_path, resolve_bundle
from rcm_daemon.bundle.manifest import Manifest, write_manifest

if TYPE_CHECKING:
    from pathlib import Path


def outcome(folder: Path, provider: str = "cpu") -> dict[str, bool]:
    report = check_bundle(folder, provider)  # type: ignore[arg-type]
    assert report.ok == all(item.ok for item in report.items)
    assert all(item.detail for item in report.items)
    return {item.what: item.ok for item in report.items}


def reseal(folder: Path) -> None:
    """Write the manifest anew over changed files."""
    old = json.loads((folder / "manifest.json").read_text())
    shape = tuple(old["input"]["shape"])
    keys = ("name", "version", "kind", "max_slices", "rcn_inputs", "provenance", "attention_half_width")
    write_manifest(
        folder, field_shape=shape, pixel_size_um=0.5, z_step_um=(1.5, 5.0), **{key: old[key] for key in keys}
    )


def test_good_bundle_passes_every_item(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    report = check_bundle(tmp_path, "cpu")
    assert report.ok
    assert [item.what for item in report.items] == [
        "files",
        "networks",
        "golden embeddings",
        "golden probabilities",
    ]
    assert "largest difference" in report.items[2].detail
    assert "allowed" in report.items[2].detail


def test_swapped_file_fails_and_stops(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    (tmp_path / "rcn.onnx").write_bytes(rcn_bytes()[:-1] + b"\x00")
    assert outcome(tmp_path) == {"files": False}


def test_network_that_does_not_fit_fails(tmp_path: Path) -> None:
    write_bundle(tmp_path, rcn=rcn_bytes(size=128))
    assert outcome(tmp_path) == {"files": True, "networks": False}


def test_networks_that_compute_otherwise_fail_their_golden_vectors(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    (tmp_path / "cnn.onnx").write_bytes(cnn_bytes(bias=1.0))
    reseal(tmp_path)
    assert outcome(tmp_path) == {
        "files": True,
        "networks": True,
        "golden embeddings": False,
        "golden probabilities": True,
    }


@pytest.mark.parametrize("damage", ["empty", "missing key", "wrong shape", "pickle", "nan"])
def test_golden_vectors_that_cannot_be_used_fail(tmp_path: Path, damage: str) -> None:
    write_bundle(tmp_path)
    path = tmp_path / "golden.npz"
    golden = dict(np.load(path))
    if damage == "missing key":
        del golden["stack_weight"]
    elif damage == "wrong shape":
        golden["slices"] = golden["slices"][:, :5]
    elif damage == "nan":
        golden["slice_embeddings"][0, 0] = np.nan
    np.savez(path, **golden)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"slices": 1}))
    reseal(tmp_path)
    found = outcome(tmp_path)
    assert found["networks"]
    assert not all(found.values())


def test_no_bundle_is_a_report_too(tmp_path: Path) -> None:
    assert outcome(tmp_path / "none") == {"files": False}


def test_default_bundle_lies_in_the_package_and_options_win(tmp_path: Path) -> None:
    assert resolve_bundle() == resolve_bundle("") == default_bundle_path()
    assert default_bundle_path().parts[-3:] == ("rcm_daemon", "bundle", "default")
    assert resolve_bundle(tmp_path) == tmp_path
    write_bundle(tmp_path)
    assert Manifest.load(resolve_bundle(str(tmp_path))).name == "tiny"


@pytest.mark.hazard("H45")
def test_an_estimator_that_cannot_be_computed_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*_: object) -> None:
        raise OverflowError("math range error")

    assert check_bundle(default_bundle_path(), "cpu").ok
    monkeypatch.setattr("rcm_daemon.bundle.check.monotone_estimate", overflow)
    report = check_bundle(default_bundle_path(), "cpu")
    (failed,) = [item for item in report.items if not item.ok]
    assert (failed.what, failed.detail) == ("estimator", "stack of 1 slices: math range error")
