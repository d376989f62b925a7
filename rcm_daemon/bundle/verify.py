"""A bundle folder read once: the bytes that were hashed are the bytes that are loaded."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rcm_daemon.bundle.manifest import (
    MANIFEST_FILE,
    Manifest,
    bundle_digest,
    read_manifest_bytes,
    read_plain_file,
)
from rcm_daemon.bundle.signature import N_SIGNATURE_BYTES, SIGNATURE_FILE, check_signature, sign_manifest
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class VerifiedBundle:
    """A whole bundle in memory, every byte as its manifest says.

    Attributes
    ----------
    digest
        SHA-256 (hex) of manifest.json.
    files
        Contents by plain name, without the manifest.
    folder
        Where it was read, for messages only: the disk is not read again.
    """

    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]
    folder: Path


def load_verified(folder: Path | str, public_key: bytes | None = None) -> VerifiedBundle:
    """Read a bundle folder, checking names, lengths and digests against its manifest.

    With `public_key` (Ed25519, 32 bytes) the manifest must be signed; without, a signature is not looked at.

    Raises
    ------
    BundleError
        No manifest or a faulty one; not signed with the key; a file missing, unlisted, linked, of another
        length or digest. All faults of the folder are named at once.
    """
    folder = Path(folder)
    manifest_bytes = read_manifest_bytes(folder)
    found = set(os.listdir(folder)) - {MANIFEST_FILE, SIGNATURE_FILE}
    if public_key is not None:
        if not (folder / SIGNATURE_FILE).exists():
            raise BundleError(
                f"a bundle must be signed with the configured key, got no {SIGNATURE_FILE} in {folder}"
            )
        signature = read_plain_file(folder / SIGNATURE_FILE, N_SIGNATURE_BYTES)
        check_signature(manifest_bytes, signature, public_key, folder)
    manifest = Manifest.parse(manifest_bytes, folder / MANIFEST_FILE)
    faults = [f"{name} is not listed" for name in sorted(found - manifest.files.keys())]
    files: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        if name not in found:
            faults.append(f"{name} is missing")
            continue
        status = os.lstat(folder / name)
        if stat.S_ISLNK(status.st_mode):
            faults.append(f"{name} is a link")
            continue
        if status.st_size != expected.n_bytes:
            faults.append(f"{name} has {status.st_size} bytes, not {expected.n_bytes}")
            continue
        data = read_plain_file(folder / name, expected.n_bytes)
        if hashlib.sha256(data).hexdigest() != expected.sha256:
            faults.append(f"{name} has another SHA-256 than listed")
        files[name] = data
    if faults:
        raise BundleError(
            f"a bundle must hold exactly the files its manifest lists, got {len(faults)} "
            f"fault{'s' * (len(faults) > 1)} ({'; '.join(faults)}) in {folder}"
        )
    return VerifiedBundle(manifest, bundle_digest(manifest_bytes), files, folder)


def sign_bundle(folder: Path, private_key: Path) -> Path:
    """Sign a bundle that is whole, and return where its signature was written.

    Raises
    ------
    BundleError
        The bundle is not whole, or the signature cannot be written.
    ConfigurationError
        The file holds no private key.
    """
    load_verified(folder)
    signature = sign_manifest(read_manifest_bytes(folder), private_key)
    path = folder / SIGNATURE_FILE
    draft = folder / f"{SIGNATURE_FILE}.new"
    try:
        draft.write_bytes(signature)
        draft.replace(path)
    except OSError as error:
        raise BundleError(f"the signature {path} cannot be written ({error.strerror})") from error
    return path
