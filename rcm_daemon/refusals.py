"""Refused messages: counted, and logged without anything that a controller was free to name."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rcm_daemon.core.pseudonyms import Pseudonyms
    from rcm_daemon.core.rejection import Rejection
    from rcm_daemon.health import Counts

log = logging.getLogger("rcm_daemon")


def note_refusal(rejection: Rejection, counts: Counts, pseudonyms: Pseudonyms) -> None:
    """Count and log one refusal.

    Stack ids can hold patients' names, and what was expected and got can quote them: the log has a pseudonym
    and the rule.
    """
    counts.refuse(rejection.rule)
    origin = rejection.origin
    stack = pseudonyms.of(origin.stack_id) if origin.stack_id else ""
    fields = {"rule": rejection.rule.name.lower(), "number": f"R{rejection.rule.value}"}
    fields |= {"instrument": origin.instrument, "stack": stack, "index": str(origin.index)}
    log.warning("message refused", extra=fields)
