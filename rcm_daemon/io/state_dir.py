"""The daemon's own folder: one daemon at a time, and a counter that never goes back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
from typing import TYPE_CHECKING, TextIO

from rcm_daemon.errors import ConfigurationError, RcmError

if TYPE_CHECKING:
    from pathlib import Path

SEQ_BLOCK = 10_000
N_SALT_BYTES = 32

log = logging.getLogger("rcm_daemon")


def unwritable(folder: Path, error: OSError) -> RcmError:
    """Return what to raise where the state folder cannot be written: a full disk is no faulty setting."""
    detail = f"the state folder {folder} cannot be written ({error.strerror})"
    return RcmError(detail) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigurationError([detail])


class StateDir:
    """A locked state folder.

    Sequence numbers are reserved on disk in blocks before they are used, so that they rise through a crash,
    where the rest of a block is skipped.

    Raises
    ------
    ConfigurationError
        The folder cannot be made or written, or another daemon holds it.
    RcmError
        There is no room in it: starting again may help.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds stack ids
            self._lock: TextIO = (folder / "lock").open("a+")
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._seq = self._reserved = self._read_reserved()
            self._reserve()
        except BlockingIOError:
            self._lock.close()
            detail = f"the state folder {folder} is held by another daemon; give each its own --state-dir"
            raise ConfigurationError([detail]) from None
        except ConfigurationError:
            self._lock.close()
            raise
        except OSError as error:
            self._lock.close()
            raise unwritable(folder, error) from error

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._folder

    @property
    def seq(self) -> int:
        """The last number given out."""
        return self._seq

    def next_seq(self) -> int:
        """Return the endpoint's next sequence number.

        Where the folder cannot be written (full, gone) numbers still rise; only a crash could repeat them.
        """
        if self._seq >= self._reserved:
            try:
                self._reserve()
            except OSError as error:
                log.error(
                    "the state folder cannot be written (%s): results may repeat seq after a crash", error
                )
        self._seq += 1
        return self._seq

    def recall(self, name: str) -> str:
        """Return what was last remembered under a name, empty where nothing was or can be read."""
        try:
            return (self._folder / name).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def remember(self, name: str, text: str) -> None:
        """Keep a text under a plain name, whole or not at all.

        Raises
        ------
        OSError
            It could not be written; what was there before still is.
        """
        path = self._folder / f"{name}.new"
        with path.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        path.replace(self._folder / name)
        self.sync()

    def sync(self) -> None:
        """Return when the folder's names are on disk.

        Raises
        ------
        OSError
            They are not.
        """
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def salt(self) -> bytes:
        """Return the secret that pseudonyms are made with, new at the folder's first use.

        Raises
        ------
        ConfigurationError
            It cannot be read or written, or is cut short.
        """
        path = self._folder / "salt"
        try:
            if not path.exists():
                draft = self._folder / "salt.new"
                draft.unlink(missing_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(draft, flags, 0o600), "wb") as file:
                    file.write(secrets.token_bytes(N_SALT_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            salt = path.read_bytes()
        except OSError as error:
            raise ConfigurationError([f"the salt {path} cannot be used ({error.strerror})"]) from error
        if len(salt) != N_SALT_BYTES:
            raise ConfigurationError([f"{path} must hold {N_SALT_BYTES} bytes; delete it for new pseudonyms"])
        return salt

    def close(self) -> None:
        """Give back what is left of the reserved block, and the lock."""
        with contextlib.suppress(OSError):  # a folder that is full or gone costs only the rest of the block
            self._write(self._seq)
        self._lock.close()

    def _reserve(self) -> None:
        self._reserved = max(self._reserved, self._seq) + SEQ_BLOCK
        self._write(self._reserved)

    def _read_reserved(self) -> int:
        try:
            return int((self._folder / "seq").read_text())
        except FileNotFoundError:
            return 0
        except ValueError:
            path = self._folder / "seq"
            raise ConfigurationError([f"{path} must hold one whole number; mend or delete it"]) from None

    def _write(self, value: int) -> None:
        self.remember("seq", str(value))
