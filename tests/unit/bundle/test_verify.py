"""A bundle folder is read once and holds exactly what its manifest lists."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest
from tiny_bundle import write_bundle

from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_whole_bundle_is_read(folder: Path) -> None:
    bundle = load_verified(folder)
    assert bundle.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert bundle.files["cnn.onnx"] == (folder / "cnn.onnx").read_bytes()


def test_linked_bundle_folder_is_accepted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    assert load_verified(tmp_path / "current").digest == load_verified(folder).digest


@pytest.mark.hazard("H44")
def test_another_digest_is_refused(folder: Path) -> None:
    data = bytearray((folder / "cnn.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "cnn.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"cnn\.onnx has another SHA-256 than listed"):
        load_verified(folder)


@pytest.mark.hazard("H44")
def test_hashed_bytes_are_the_loaded_bytes(folder: Path) -> None:
    bundle = load_verified(folder)
    for name in bundle.files:
        (folder / name).write_bytes(b"swapped after verification")
    assert Networks.open(bundle, "cpu").provider == "cpu"


@pytest.mark.hazard("H42")
@pytest.mark.parametrize("name", ["cnn.onnx", "manifest.json"])
def test_links_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleError, match="a link"):
        load_verified(folder)


def test_all_faults_of_the_folder_are_named_at_once(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    (folder / "MODEL_CARD.md").write_text("longer than it was\n")
    (folder / "weights.bin").write_bytes(b"1")
    with pytest.raises(BundleError) as caught:
        load_verified(folder)
    message = str(caught.value)
    for part in (
        "3 faults",
        "golden.npz is missing",
        "MODEL_CARD.md has 19 bytes, not 7",
        "weights.bin is not listed",
    ):
        assert part in message


def test_fifo_in_place_of_a_file_does_not_hang(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(BundleError, match="plain files only"):
        load_verified(folder)


def test_endless_manifest_is_not_read_whole(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BundleError, match="at most 1048576 bytes"):
        load_verified(folder)
