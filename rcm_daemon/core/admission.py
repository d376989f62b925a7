"""Which messages the holder of a key may send: those of the one instrument it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Origin, Rejection, Rule

if TYPE_CHECKING:
    from rcm_daemon.core.records import Message

ANY_INSTRUMENT = "*"


def origin_of(message: Message) -> Origin:
    """Say who sent a well-formed message and which one it is."""
    header = message.header if isinstance(message, Slice) else message
    index = message.header.index if isinstance(message, Slice) else -1
    return Origin(header.instrument, header.run_id, header.msg_number, header.htype, header.stack_id, index)


def check_instrument(message: Message, bound: str) -> None:
    """Refuse a message of another instrument than its sender's key is bound to.

    Raises
    ------
    Rejection
        `wrong_instrument`.
    """
    origin = origin_of(message)
    if bound not in (ANY_INSTRUMENT, origin.instrument):
        detail = f"this key is instrument {bound}'s, got a message of {origin.instrument}"
        raise Rejection(Rule.WRONG_INSTRUMENT, detail, origin)


def may_account(bound: str | None, instrument: str) -> bool:
    """Whether what this sender got wrong counts in an instrument's account: in its own only."""
    return bound is not None and bound in (ANY_INSTRUMENT, instrument)
