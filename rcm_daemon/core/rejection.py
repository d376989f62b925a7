"""Why a message is refused: numbered rules, each naming what it demands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rcm_daemon.errors import RcmError


class Rule(Enum):
    """The closed list of rules; the number is stable, the name is for people and metrics."""

    NOT_JSON = 101
    WRONG_SCHEMA = 102
    UNKNOWN_VERSION = 103
    UNKNOWN_HTYPE = 104
    HEADER_TOO_LARGE = 105
    NESTED_TOO_DEEPLY = 106
    FRAME_COUNT = 107
    MISSING_KEY = 108
    BAD_VALUE = 109
    NOT_FINITE = 110
    BAD_ID = 111
    BAD_DTYPE = 112
    PAYLOAD_LENGTH = 113
    CRC_MISMATCH = 114
    TOO_LARGE = 115

    OLD_RUN = 201
    TOO_MANY_INSTRUMENTS = 202
    STACK_ENDED = 203
    STACK_NOT_OPEN = 204
    SHAPE_CHANGED = 205
    PITCH_CHANGED = 206
    DTYPE_CHANGED = 207

    NOT_EMBEDDED = 301
    NOT_LABELLED = 302
    QUARANTINED = 303
    DAMAGED = 304
    BUNDLE_GONE = 305

    KEY_REVOKED = 401
    WRONG_INSTRUMENT = 402


@dataclass(frozen=True)
class Origin:
    """As much as could be read of who sent a refused message and which one it was."""

    instrument: str = ""
    run_id: str | None = None
    msg_number: int = -1
    htype: str = ""
    stack_id: str = ""
    index: int = -1

    @property
    def is_numbered(self) -> bool:
        """Whether the message can be accounted to a run: a heartbeat's number is not its own."""
        return bool(self.instrument) and self.msg_number >= 0 and self.htype != "heartbeat"


class Rejection(RcmError):  # noqa: N818  # the wire's own word
    """The one error of the wire: a message breaks a rule, and service goes on.

    Parameters
    ----------
    rule
        What was broken.
    detail
        One clause: what was expected and what came.
    origin
        Who sent it, as far as it could be read.
    """

    def __init__(self, rule: Rule, detail: str, origin: Origin | None = None) -> None:
        self.rule = rule
        self.detail = detail
        self.origin = origin or Origin()
        super().__init__(f"R{rule.value} {rule.name.lower()}: {detail}")
