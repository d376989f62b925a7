"""Key pairs in a folder: `NAME.secret` (0600) and `NAME.public`, one line of 40 Z85 characters each."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from rcm_daemon.errors import ConfigurationError

KEY_NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
N_KEY_BYTES = 32
MAX_KEY_FILE_BYTES = 1_000
SECRET_MODE = 0o600


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, each key as 40 Z85 characters."""

    public: bytes
    secret: bytes = field(repr=False)


def default_keys_dir() -> Path:
    """Return systemd's configuration directory, else the user's."""
    given = os.environ.get("CONFIGURATION_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given) / "keys"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rcm-daemon" / "keys"


def check_key_name(name: str) -> str:
    """Return the name of a key, which is also a file's stem.

    Raises
    ------
    ConfigurationError
        Anything but 1 to 64 of `[A-Za-z0-9_-]`.
    """
    if not re.fullmatch(KEY_NAME_PATTERN, name):
        raise ConfigurationError([f"a key's name must match {KEY_NAME_PATTERN}, got {name!a}"])
    return name


def check_public_key(text: str) -> bytes:
    """Return a public key, 40 Z85 characters.

    Raises
    ------
    ConfigurationError
        Anything else.
    """
    try:
        key = text.strip().encode("ascii")
        if len(key) == N_KEY_BYTES * 5 // 4 and z85.encode(z85.decode(key)) == key:
            return key
    except (ValueError, KeyError, UnicodeEncodeError):
        pass
    raise ConfigurationError([f"a key is 40 Z85 characters, got {text.strip()[:60]!a}"])


def new_key_pair(folder: Path, name: str) -> KeyPair:
    """Make a key pair and write both files; a name that is taken is refused, never overwritten.

    Raises
    ------
    ConfigurationError
        No such name, taken, or the folder cannot be written.
    """
    check_key_name(name)
    public, secret = zmq.curve_keypair()
    secret_path = folder / f"{name}.secret"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_new(secret_path, secret, SECRET_MODE)  # first: where it is there already nothing is made
        try:
            _write_new(folder / f"{name}.public", public, 0o644)
        except OSError:
            secret_path.unlink()
            raise
    except FileExistsError as error:
        raise ConfigurationError([f"key {name} is there already: {error.filename}"]) from None
    except OSError as error:
        raise ConfigurationError([f"keys cannot be written to {folder} ({error.strerror})"]) from error
    return KeyPair(public, secret)


def find_secret(folder: Path, name: str) -> Path | None:
    """Return where the secret of a key lies: systemd's credentials first, then the keys folder."""
    check_key_name(name)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    for place in ([Path(credentials)] if credentials else []) + [folder]:
        if os.path.exists(place / f"{name}.secret"):  # False, too, where the folder may not be looked into
            return place / f"{name}.secret"
    return None


def load_key_pair(folder: Path, name: str) -> KeyPair:
    """Read the secret key of this name; the public one follows from it.

    Raises
    ------
    ConfigurationError
        None there, none that is a key, or others can read it.
    """
    path = find_secret(folder, name)
    if path is None:
        detail = f"there is no key {name} in {folder}; make one with: rcm-daemon keys new {name}"
        raise ConfigurationError([detail])
    # The modes of systemd's credentials show an access list's mask, and nobody else can reach their folder.
    if path.parent == folder and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigurationError([f"{path} must be its owner's alone: chmod 600 {path}"])
    secret = read_key(path)
    return KeyPair(zmq.curve_public(secret), secret)


def load_public_key(folder: Path, name: str) -> bytes:
    """Read `NAME.public` of the folder.

    Raises
    ------
    ConfigurationError
        None there, or none that is a key.
    """
    return read_key(folder / f"{check_key_name(name)}.public")


def public_key_names(folder: Path) -> list[str]:
    """Names of all public keys in the folder, sorted."""
    return sorted(p.stem for p in folder.glob("*.public") if re.fullmatch(KEY_NAME_PATTERN, p.stem))


def read_key(path: Path) -> bytes:
    """Read a file that holds one key; what else stands in it is never shown.

    Raises
    ------
    ConfigurationError
        It cannot be read or holds no key.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_KEY_FILE_BYTES).decode("ascii")
    except UnicodeDecodeError:
        raise ConfigurationError([f"{path} must hold a key of 40 Z85 characters"]) from None
    except OSError as error:
        raise ConfigurationError([f"the key {path} cannot be read ({error.strerror})"]) from error
    try:
        return check_public_key(text)
    except ConfigurationError:
        # Whatever stands there may be a secret with a slip in it: it is not shown.
        raise ConfigurationError([f"{path} must hold a key of 40 Z85 characters"]) from None


def _write_new(path: Path, key: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask says
        file.write(key + b"\n")
