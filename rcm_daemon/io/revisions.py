"""How many messages each stack has had, so that a killed daemon goes on with the next number.

One line a message, written before the message is sent and not synced: what a process has written outlives
the process. Only a power cut can lose lines; the next start sees by the machine's boot id that there may
have been one, and then every stack that goes on jumps, so that no number comes twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from rcm_daemon.io.state_dir import unwritable

if TYPE_CHECKING:
    from rcm_daemon.core.stack import StackKey
    from rcm_daemon.io.state_dir import StateDir

REVISIONS_FILE = "revisions"
AHEAD = 10_000
"""After a power cut revisions go on this much higher than what is known of them."""
MAX_INSTRUMENTS_KEPT = 1_000
STACKS_OF_EACH = 3
"""Of one instrument: the stack that is open, and such as are being labelled still after their end."""
N_BYTES = 1 << 20
"""Taken from the disk beforehand, so that a full one does not stop the counting."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger("rcm_daemon")


class Revisions:
    """The last revision of each instrument's last stacks.

    Parameters
    ----------
    state_dir
        Where they are kept.

    Raises
    ------
    RcmError
        The folder cannot be written.
    """

    def __init__(self, state_dir: StateDir) -> None:
        self._state_dir = state_dir
        self._boot_id = BOOT_ID.read_text(encoding="ascii").strip()
        self._known: OrderedDict[str, OrderedDict[StackKey, int]] = OrderedDict()
        self._file = -1
        self._fault = ""
        is_exact = self._read(state_dir.recall(REVISIONS_FILE))
        self._ahead = 0 if is_exact else AHEAD
        for stacks in self._known.values():
            for stack in stacks:
                stacks[stack] += self._ahead
        try:
            self._begin()
        except OSError as error:
            raise unwritable(state_dir.folder, error) from error

    def resumed(self, stack: StackKey, written: int) -> int:
        """Return the last revision of a stack whose account on disk says `written`."""
        return max(self._last(stack), written + self._ahead)

    def following(self, stack: StackKey, last: int) -> int:
        """Return the revision of a stack's next message; on disk as soon as no process can lose it."""
        revision = max(self._last(stack), last) + 1
        self._keep(stack, revision)
        line = _line(stack, revision)
        try:
            if self._n_written + len(line) > self._n_bytes:
                self._begin(synced=False)
            else:
                os.pwrite(self._file, line, self._n_written)
                self._n_written += len(line)
            self._fault = ""
        except OSError as error:
            if not self._fault:
                log.error("revisions cannot be kept (%s): a crash now may repeat some", error.strerror)
            self._fault = str(error)
        return revision

    def close(self) -> None:
        """Keep them through a power cut too; where that fails they jump at the next start."""
        os.close(self._file)
        try:
            self._state_dir.remember(REVISIONS_FILE, self._text(is_closed=True).decode())
        except OSError as error:
            log.error("revisions cannot be kept (%s)", error.strerror)

    def _last(self, stack: StackKey) -> int:
        stacks = self._known.get(stack[0])
        return stacks.get(stack, 0) if stacks is not None else 0

    def _keep(self, stack: StackKey, revision: int) -> None:
        """Remember a number as the newest there is."""
        stacks = self._known.pop(stack[0], OrderedDict())
        self._known[stack[0]] = stacks
        stacks.pop(stack, None)
        stacks[stack] = revision
        if len(stacks) > STACKS_OF_EACH:
            stacks.popitem(last=False)
        if len(self._known) > MAX_INSTRUMENTS_KEPT:
            self._known.popitem(last=False)

    def _read(self, text: str) -> bool:
        """Take over what an earlier daemon has kept; whether that is all there was."""
        try:
            # What stands behind the last line end is a line cut short, whose message was not sent.
            head, *lines = text.split("\n")[:-1]
            boot_id, is_closed = json.loads(head)
            for line in lines:
                instrument, stack_id, acquisition, revision = json.loads(line)
                self._keep((str(instrument), str(stack_id), int(acquisition)), int(revision))
        except (ValueError, TypeError):  # cut short, or none yet
            return False
        return bool(is_closed) or boot_id == self._boot_id

    def _begin(self, *, synced: bool = True) -> None:
        """Write what is known into a new file and go on there."""
        text = self._text(is_closed=False)
        n_bytes = max(N_BYTES, 2 * len(text))
        path = self._state_dir.folder / f"{REVISIONS_FILE}.new"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, n_bytes)
            os.pwrite(file, text, 0)
            if synced:  # before the first number is given out; else "closed" might be what a power cut leaves
                os.fsync(file)
            path.replace(self._state_dir.folder / REVISIONS_FILE)
            if synced:
                self._state_dir.sync()
        except BaseException:
            os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._n_bytes, self._n_written = file, n_bytes, len(text)

    def _text(self, *, is_closed: bool) -> bytes:
        head = json.dumps([self._boot_id, is_closed]).encode() + b"\n"
        known = [one for stacks in self._known.values() for one in stacks.items()]
        return head + b"".join(_line(stack, revision) for stack, revision in known)


def _line(stack: StackKey, revision: int) -> bytes:
    return json.dumps([*stack, revision]).encode() + b"\n"
