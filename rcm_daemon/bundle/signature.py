"""Ed25519 signatures of bundles: `manifest.sig`, 64 bytes over manifest.json, which names every digest.

Needs the extra `signing`; openssl can do the same:
`openssl pkeyutl -sign -rawin -inkey KEY -in manifest.json -out manifest.sig`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rcm_daemon.errors import BundleError, ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_FILE = "manifest.sig"
N_SIGNATURE_BYTES = 64
MAX_PEM_BYTES = 10_000


def new_signing_key(path: Path) -> Path:
    """Write a private key to `path` (PEM, 0600) and its public key to `path`.pub; returns the latter.

    Raises
    ------
    ConfigurationError
        One of the files is there already or cannot be written.
    """
    _require_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    public_path = path.with_name(path.name + ".pub")
    try:
        for target, data, mode in ((path, private, 0o600), (public_path, public, 0o644)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(target, flags, mode), "wb") as file:
                file.write(data)
    except OSError as error:
        raise ConfigurationError([f"the signing key {path} cannot be written ({error.strerror})"]) from error
    return public_path


def sign_manifest(manifest: bytes, private_key: Path) -> bytes:
    """Return the signature of manifest bytes.

    Raises
    ------
    ConfigurationError
        The file holds no Ed25519 private key, or the extra is not installed.
    """
    return _read_private_key(private_key).sign(manifest)


def read_public_key(path: Path) -> bytes:
    """Return the 32 raw bytes of the Ed25519 public key in a PEM file.

    Raises
    ------
    ConfigurationError
        The file holds none, or the extra is not installed.
    """
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read_pem(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError([f"{path} must hold an Ed25519 public key in PEM"])
    return key.public_bytes_raw()


def check_signature(manifest: bytes, signature: bytes, public_key: bytes, folder: Path) -> None:
    """Refuse manifest bytes that the holder of the key has not signed.

    Raises
    ------
    BundleError
        The signature is another key's, of other bytes, or none.
    """
    _require_library()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, manifest)
    except InvalidSignature:
        raise BundleError(
            f"a bundle must be signed with the configured key, got a signature that is not its, in {folder}"
        ) from None


def _read_private_key(path: Path) -> Ed25519PrivateKey:
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read_pem(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError([f"{path} must hold an Ed25519 private key in PEM, not encrypted"])
    return key


def _read_pem(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PEM_BYTES)
    except OSError as error:
        raise ConfigurationError([f"the key {path} cannot be read ({error.strerror})"]) from error


def _require_library() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        detail = 'signatures of bundles need the extra: pip install "rcm-daemon[signing]"'
        raise ConfigurationError([detail]) from None
