"""Signed bundles: what a configured key demands, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tiny_bundle import write_bundle
from typer.testing import CliRunner

from rcm_daemon.bundle.signature import new_signing_key, read_public_key
from rcm_daemon.bundle.verify import load_verified, sign_bundle
from rcm_daemon.cli import app
from rcm_daemon.errors import BundleError, ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder)
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_signing_key(tmp_path / "key")
    return tmp_path / "key"


def public(key: Path) -> bytes:
    return read_public_key(key.with_name(key.name + ".pub"))


@pytest.mark.hazard("H44")
def test_a_signed_bundle_is_served_with_and_without_a_key(folder: Path, key: Path) -> None:
    digest = load_verified(folder).digest
    sign_bundle(folder, key)
    assert load_verified(folder, public(key)).digest == digest
    assert load_verified(folder).digest == digest


@pytest.mark.hazard("H44")
def test_an_unsigned_bundle_is_refused_where_a_key_is_configured(folder: Path, key: Path) -> None:
    with pytest.raises(BundleError, match=r"must be signed with the configured key, got no manifest\.sig"):
        load_verified(folder, public(key))


@pytest.mark.hazard("H44")
@pytest.mark.parametrize("damage", ["other key", "other manifest", "cut", "empty", "long", "link"])
def test_another_signature_is_refused(folder: Path, key: Path, tmp_path: Path, damage: str) -> None:
    sign_bundle(folder, key)
    signature = folder / "manifest.sig"
    wanted = public(key)
    if damage == "other key":
        new_signing_key(tmp_path / "other")
        wanted = public(tmp_path / "other")
    elif damage == "other manifest":
        manifest = folder / "manifest.json"
        manifest.write_bytes(manifest.read_bytes() + b"\n")
    elif damage == "link":
        signature.rename(tmp_path / "elsewhere")
        signature.symlink_to(tmp_path / "elsewhere")
    else:
        data = {"cut": signature.read_bytes()[:-1], "empty": b"", "long": bytes(65)}
        signature.write_bytes(data[damage])
    with pytest.raises(BundleError):
        load_verified(folder, wanted)


def test_a_bundle_that_is_not_whole_is_not_signed(folder: Path, key: Path) -> None:
    (folder / "extra").write_text("")
    with pytest.raises(BundleError, match="extra is not listed"):
        sign_bundle(folder, key)
    assert not (folder / "manifest.sig").exists()


def test_the_private_key_is_its_owners_alone_and_never_overwritten(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="File exists"):
        new_signing_key(key)


@pytest.mark.parametrize("text", ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, folder: Path, text: str) -> None:
    (tmp_path / "none").write_text(text)
    with pytest.raises(ConfigurationError, match="must hold an Ed25519 public key"):
        read_public_key(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="must hold an Ed25519 private key"):
        sign_bundle(folder, tmp_path / "none")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_public_key(tmp_path / "absent")


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "ec").write_bytes(pem)
    with pytest.raises(ConfigurationError, match="must hold an Ed25519 public key"):
        read_public_key(tmp_path / "ec")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_and_checks_the_same_signatures(folder: Path, key: Path) -> None:
    manifest, signature = folder / "manifest.json", folder / "manifest.sig"
    common = ["-rawin", "-in", manifest]
    subprocess.run(["openssl", "pkeyutl", "-sign", "-inkey", key, *common, "-out", signature], check=True)
    load_verified(folder, public(key))
    signature.unlink()
    sign_bundle(folder, key)
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", f"{key}.pub", *common]
    subprocess.run([*verify, "-sigfile", signature], check=True, stdout=subprocess.DEVNULL)


def test_commands(folder: Path, tmp_path: Path) -> None:
    runner, key = CliRunner(), str(tmp_path / "mine")
    assert runner.invoke(app, ["bundle", "key", key]).exit_code == 0
    check = ["check", str(folder), "--public-key", f"{key}.pub"]
    refused = runner.invoke(app, check)
    assert (refused.exit_code, "must be signed" in refused.output) == (1, True)
    assert runner.invoke(app, ["bundle", "sign", str(folder), "--key", key]).exit_code == 0
    assert "ok   signature: by the key given" in runner.invoke(app, check).output


def test_without_the_extra_it_is_said_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "sys.argv = ['rcm-daemon', 'bundle', 'key', sys.argv[1]]\n"
        "from rcm_daemon.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "key")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    assert 'pip install "rcm-daemon[signing]"' in done.stderr
