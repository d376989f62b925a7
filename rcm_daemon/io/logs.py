"""Logs as one line of key=value fields each, as journald and people can read them.

`<4>level=warning msg="message refused" rule=crc_mismatch instrument=m1`: the leading priority (sd-daemon(3))
is written only to the journal, which takes it off again. Fields come from logging's `extra`.
"""

from __future__ import annotations

import logging
import os
import re
import sys

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_STANDARD = frozenset(vars(logging.makeLogRecord({})))
_BARE = re.compile(r"[!-~]+")


class KeyValueFormatter(logging.Formatter):
    """Writes a record on one line; what comes from outside is quoted and escaped, so it cannot forge one.

    Parameters
    ----------
    priorities
        Whether the line begins with its priority for the journal.
    """

    def __init__(self, *, priorities: bool = False) -> None:
        super().__init__()
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, the traceback of an exception as a field."""
        fields: dict[str, object] = {"level": record.levelname.lower(), "msg": record.getMessage()}
        extra = {
            k: v for k, v in vars(record).items() if k not in _STANDARD and k not in ("message", "asctime")
        }
        fields |= dict(sorted(extra.items()))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        priority = f"<{_PRIORITIES.get(record.levelno, 5)}>" if self._priorities else ""
        return priority + " ".join(f"{key}={_value(value)}" for key, value in fields.items())


def _value(value: object) -> str:
    text = str(value)
    if _BARE.fullmatch(text) and not set(text) & set('"=\\'):
        return text
    return '"' + ascii(text)[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'


def start_logging(level: str) -> None:
    """Log to standard error from here on, to the journal with priorities if it listens there."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter(priorities="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
