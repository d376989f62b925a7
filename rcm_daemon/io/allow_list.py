"""Whose keys are let in, and as which instrument: `allowed.json` in the keys folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rcm_daemon.core.records import INSTRUMENT_PATTERN
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.keys import KEY_NAME_PATTERN, check_key_name, check_public_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALLOWED_FILE = "allowed.json"
MAX_FILE_BYTES = 1 << 20

log = logging.getLogger("rcm_daemon")


def _key(text: str) -> str:
    try:
        check_public_key(text)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    return text


class AllowedKey(BaseModel):
    """A key that is let in.

    Attributes
    ----------
    instrument
        The one instrument it may send slices as; `*` = any, empty = none: it may see results and ask only.
    operator
        Whether it may change what is served: activate a bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=KEY_NAME_PATTERN)]
    public_key: Annotated[str, AfterValidator(_key)]
    instrument: Annotated[str, Field(pattern=rf"{INSTRUMENT_PATTERN}|^\*$|^$")]
    operator: bool = False


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_: Literal["rcm-keys-1"] = Field(alias="schema", default="rcm-keys-1")
    keys: tuple[AllowedKey, ...] = ()

    @model_validator(mode="after")
    def _once_each(self) -> _File:
        if len({k.name for k in self.keys}) < len(self.keys):
            raise ValueError("each name stands once")
        if len({k.public_key for k in self.keys}) < len(self.keys):
            raise ValueError("each public key stands once")
        return self


class AllowList:
    """The allow-list as it stands on disk at each question; a missing file lets nobody in.

    A file that cannot be read or is no allow-list is reported in `damage`: then nobody new is to be let in,
    and the last good list answers for the connections that are there.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ALLOWED_FILE
        self._seen: tuple[int, int, int] | None = None
        self._by_key: dict[bytes, AllowedKey] = {}
        self.damage = ""

    def find(self, public_key: bytes) -> AllowedKey | None:
        """Return what is allowed to this key now, None if nothing is."""
        self._refresh()
        return self._by_key.get(public_key)

    def named(self, name: str) -> AllowedKey | None:
        """Return the key of this name, None if it is not allowed."""
        self._refresh()
        return next((key for key in self._by_key.values() if key.name == name), None)

    def _refresh(self) -> None:
        try:
            status = os.stat(self._path)
            # The file is replaced, never changed in place, so another list is another inode.
            found = (status.st_ino, status.st_mtime_ns, status.st_size)
            if found == self._seen and not self.damage:
                return
            self._by_key = {k.public_key.encode(): k for k in read_allowed(self._path.parent)}
            self._seen, self.damage = found, ""
        except FileNotFoundError:
            self._by_key, self._seen, self.damage = {}, None, ""
        except (ConfigurationError, OSError) as error:
            if not self.damage:
                log.error("allow-list damaged, nobody new is let in", extra={"reason": str(error)})
            self.damage = str(error)


def read_allowed(folder: Path) -> tuple[AllowedKey, ...]:
    """Read the allow-list of a keys folder; none there is an empty one.

    Raises
    ------
    ConfigurationError
        It cannot be read or is no allow-list.
    """
    path = folder / ALLOWED_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigurationError([f"the allow-list {path} cannot be read ({error.strerror})"]) from error
    try:
        return _File.model_validate_json(data).keys
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "file"
        raise ConfigurationError([f"{path} must be an allow-list, got {place}: {fault['msg']}"]) from None


def allow(
    folder: Path, name: str, public_key: bytes, instrument: str, *, operator: bool = False
) -> AllowedKey:
    """Let a key in under a name; the same key may be allowed again with other rights.

    Raises
    ------
    ConfigurationError
        No such name or instrument, or the name or the key is taken by another.
    """
    check_key_name(name)
    try:
        new = AllowedKey(name=name, public_key=public_key.decode(), instrument=instrument, operator=operator)
    except ValidationError:
        detail = f"an instrument's name must match {INSTRUMENT_PATTERN} or be *, got {instrument!a}"
        raise ConfigurationError([detail]) from None
    with _changing(folder):
        others = []
        for key in read_allowed(folder):
            if (key.name == name) != (key.public_key == new.public_key):
                taken = f"name {name}" if key.name == name else "key"
                raise ConfigurationError([f"this {taken} is allowed already: revoke {key.name} first"])
            if key.name != name:
                others.append(key)
        _write(folder, (*others, new))
    return new


def revoke(folder: Path, name: str) -> AllowedKey:
    """Let a key in no more; a running daemon drops its messages from now on.

    Raises
    ------
    ConfigurationError
        No key of this name is allowed.
    """
    check_key_name(name)
    with _changing(folder):
        keys = read_allowed(folder)
        revoked = next((key for key in keys if key.name == name), None)
        if revoked is None:
            raise ConfigurationError([f"no key {name!a} is allowed in {folder}"])
        _write(folder, tuple(key for key in keys if key is not revoked))
    return revoked


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Keep others from changing the list between reading and writing it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError([f"keys cannot be changed in {folder} ({error.strerror})"]) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(folder: Path, keys: tuple[AllowedKey, ...]) -> None:
    document = {"schema": "rcm-keys-1", "keys": [key.model_dump() for key in keys]}
    path = folder / f"{ALLOWED_FILE}.new"
    try:
        with path.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        path.replace(folder / ALLOWED_FILE)
    except OSError as error:
        raise ConfigurationError(
            [f"the allow-list of {folder} cannot be written ({error.strerror})"]
        ) from error
