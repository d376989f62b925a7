"""SQLite's file system with a tap on it: writes and syncs are noted, and can be made to fail or wait.

A shim VFS (sqlite.org/vfs.html) in ctypes over the library that Python's own sqlite3 has loaded.
"""

from __future__ import annotations

import ctypes as c
import threading
from pathlib import Path

SQLITE_OK, SQLITE_FULL, SQLITE_IOERR_FSYNC = 0, 13, 1034
# The name is passed on as the pointer it is: parameters of a URI lie behind its end.
_XOPEN = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_void_p, c.c_int, c.c_void_p)
_XWRITE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int, c.c_int64)
_XSYNC = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int)


class _Vfs(c.Structure):
    _fields_ = [
        ("version", c.c_int),
        ("os_file_size", c.c_int),
        ("max_path", c.c_int),
        ("next", c.c_void_p),
        ("name", c.c_char_p),
        ("app_data", c.c_void_p),
        ("open", c.c_void_p),
        ("others", c.c_void_p * 16),
    ]


class _Methods(c.Structure):
    _fields_ = [
        ("version", c.c_int),
        ("close", c.c_void_p),
        ("read", c.c_void_p),
        ("write", c.c_void_p),
        ("truncate", c.c_void_p),
        ("sync", c.c_void_p),
        ("others", c.c_void_p * 13),
    ]


def library_path() -> str | None:
    """Where the libsqlite3 is that this process has loaded; None where it is built into Python."""
    import sqlite3  # noqa: F401

    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libsqlite3" in line:
            return line.split()[-1]
    return None


class SqliteTap:
    """Sees every database opened while it is installed.

    Attributes
    ----------
    events
        `write` and `sync` with the end of the file's name (`db`, `db-wal`), in order.
    write_fails, sync_fails
        Fail with a full disk, or with an fsync that the disk refuses.
    sync_waits
        When set, syncs wait until `sync_may_go` is; `sync_entered` tells that one does.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.write_fails = self.sync_fails = self.sync_waits = False
        self.sync_entered, self.sync_may_go = threading.Event(), threading.Event()
        path = library_path()
        assert path is not None
        self._library = c.CDLL(path)
        self._library.sqlite3_vfs_find.restype = c.POINTER(_Vfs)
        self._library.sqlite3_vfs_find.argtypes = [c.c_char_p]
        self._library.sqlite3_vfs_register.argtypes = [c.POINTER(_Vfs), c.c_int]
        self._library.sqlite3_vfs_unregister.argtypes = [c.POINTER(_Vfs)]
        self._plain = self._library.sqlite3_vfs_find(None)
        self._plain_open = _XOPEN(self._plain.contents.open)
        self._names: dict[int, str] = {}
        self._methods: dict[int, _Methods] = {}
        self._kept = [_XOPEN(self._open)]  # what C points to must not be collected
        self._shim = _Vfs.from_buffer_copy(self._plain.contents)
        self._shim.name = b"tap"
        self._shim.next = None
        self._shim.open = c.cast(self._kept[0], c.c_void_p)

    def __enter__(self) -> SqliteTap:
        assert self._library.sqlite3_vfs_register(c.byref(self._shim), 1) == SQLITE_OK
        return self

    def __exit__(self, *exc: object) -> None:
        self.sync_may_go.set()
        self._library.sqlite3_vfs_unregister(c.byref(self._shim))

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out_flags: int) -> int:
        plain = c.cast(self._plain, c.c_void_p)
        code = int(self._plain_open(plain, name, file, flags, out_flags))
        methods_at = c.cast(file, c.POINTER(c.c_void_p))
        if code == SQLITE_OK and methods_at[0]:
            text = c.string_at(name).decode() if name else ""
            self._names[file] = text.rpartition(".")[2]
            methods_at[0] = c.addressof(self._tapped(methods_at[0]))
        return code

    def _tapped(self, address: int) -> _Methods:
        if address in self._methods:
            return self._methods[address]
        tapped = _Methods.from_buffer_copy(_Methods.from_address(address))
        plain_write, plain_sync = _XWRITE(tapped.write), _XSYNC(tapped.sync)

        def write(file: int, data: int, n_bytes: int, offset: int) -> int:
            if self.write_fails:
                return SQLITE_FULL
            self.events.append(("write", self._names[file]))
            return int(plain_write(file, data, n_bytes, offset))

        def sync(file: int, flags: int) -> int:
            if self.sync_waits:
                self.sync_entered.set()
                self.sync_may_go.wait(60)
            if self.sync_fails:
                return SQLITE_IOERR_FSYNC
            code = int(plain_sync(file, flags))
            self.events.append(("sync", self._names[file]))
            return code

        self._kept += [_XWRITE(write), _XSYNC(sync)]
        tapped.write = c.cast(self._kept[-2], c.c_void_p)
        tapped.sync = c.cast(self._kept[-1], c.c_void_p)
        self._methods[address] = tapped
        return tapped
