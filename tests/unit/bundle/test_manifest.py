"""manifest.json: what is written is what is read, and every fault is named at once."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from tiny_bundle import FIELD, write_bundle

from rcm_daemon.bundle.manifest import Manifest, bundle_digest
from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    write_bundle(tmp_path)
    return dict(json.loads((tmp_path / "manifest.json").read_text()))


def refusal(document: object) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.parse(json.dumps(document).encode(), "here/manifest.json")
    return str(caught.value)


def test_written_manifest_reads_back(tmp_path: Path) -> None:
    written = write_bundle(tmp_path, max_slices=71, kind="whole", attention_half_width=2)
    read = Manifest.load(tmp_path)
    assert read == written
    assert read.input.shape == FIELD
    assert (read.max_slices, read.kind, read.attention_half_width) == (71, "whole", 2)
    assert set(read.files) == {"cnn.onnx", "rcn.onnx", "golden.npz", "MODEL_CARD.md"}
    for name, file in read.files.items():
        data = (tmp_path / name).read_bytes()
        assert (file.sha256, file.n_bytes) == (hashlib.sha256(data).hexdigest(), len(data))


def test_classes_are_the_strata_of_the_project(tmp_path: Path) -> None:
    assert write_bundle(tmp_path).classes == STRATA


def test_digest_is_of_the_manifest_bytes() -> None:
    assert bundle_digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_every_fault_is_named_in_one_sentence(document: dict[str, Any]) -> None:
    document["kind"] = "magic"
    document["embedding_size"] = "256"
    document["input"]["pixel_size_um"] = 0
    document["extra"] = 1
    del document["notice"]
    message = refusal(document)
    for part in (
        "5 faults",
        "kind",
        "embedding_size",
        "input.pixel_size_um",
        "extra",
        "notice",
        "here/manifest.json",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name",
    ["../cnn.onnx", "a/b", "/etc/passwd", "..", ".hidden", "a\x00b", "a\nb", "", "ünï", "manifest.json"],
)
def test_file_names_are_plain(document: dict[str, Any], name: str) -> None:
    document["files"][name] = document["files"]["cnn.onnx"]
    assert "files" in refusal(document)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("schema", "rcm-bundle-2", "schema"),
        ("classes", ["epidermis", "dermis", "dej"], "classes"),
        ("rcn_inputs", ["weight", "embeddings"], "rcn_inputs"),
        ("rcn_inputs", ["z_um"], "rcn_inputs"),
        ("rcn_inputs", [], "rcn_inputs"),
        ("rcn_inputs", ["embeddings", "embeddings"], "rcn_inputs"),
        ("z_step_um", [5.0, 1.5], "smallest step"),
        ("z_step_um", [float("nan"), 1.5], "z_step_um"),
        ("max_slices", -1, "max_slices"),
        ("max_slices", 1.5, "max_slices"),
        ("name", "../x", "name"),
        ("files", {}, "must list cnn.onnx, rcn.onnx, golden.npz, MODEL_CARD.md"),
    ],
)
def test_each_rule_is_kept(document: dict[str, Any], key: str, value: object, word: str) -> None:
    document[key] = value
    assert word in refusal(document)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="must follow rcm-bundle-1"):
        Manifest.parse(data, "here")


def test_missing_folder_and_missing_manifest_say_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found no folder at"):
        Manifest.load(tmp_path / "none")
    with pytest.raises(BundleError, match=r"no such file.*manifest\.json"):
        Manifest.load(tmp_path)


def test_write_manifest_writes_nothing_when_a_rule_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="kind"):
        write_bundle(tmp_path, kind="magic")
    assert not (tmp_path / "manifest.json").exists()


def test_a_folder_that_may_not_be_entered_is_one_that_cannot_be_read(tmp_path, monkeypatch) -> None:
    """As root, for whom every folder is open, by calls that say what they say to others."""

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    write_bundle(tmp_path / "bundle", kind="whole")
    for name in ("open", "lstat"):
        monkeypatch.setattr(f"rcm_daemon.bundle.manifest.os.{name}", refuse)
    with pytest.raises(BundleError, match="permission denied"):
        Manifest.load(tmp_path / "bundle")
