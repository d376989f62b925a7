"""Names that stand for stack ids where those must not be seen: folder names can hold patients' names."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rcm_daemon.core.message import StrataMessage

N_HASH_BYTES = 8


class Pseudonyms:
    """Salted short hashes: the same id has the same pseudonym while the salt lives, and none leads back.

    With 8 bytes two of 10,000 ids share a pseudonym with a chance of 3e-12. Without the salt (32 random
    bytes) a list of names cannot be tried against them.
    """

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def of(self, text: str) -> str:
        """Return the pseudonym, `p` and 16 hexadecimal digits: a stack id itself."""
        return "p" + hashlib.blake2b(text.encode(), key=self._salt, digest_size=N_HASH_BYTES).hexdigest()


def is_pseudonym(text: str) -> bool:
    """Whether an id has the form of a pseudonym."""
    return re.fullmatch(rf"p[0-9a-f]{{{2 * N_HASH_BYTES}}}", text) is not None


def pseudonymised(message: StrataMessage, pseudonyms: Pseudonyms) -> StrataMessage:
    """Return a message without what a controller was free to name: stack and run ids, texts that quote it.

    Of each refusal the rule stays.
    """
    return message.model_copy(
        update={
            "stack_id": pseudonyms.of(message.stack_id),
            "run_id": pseudonyms.of(message.run_id),
            "rejected_reason": [reason.partition(":")[0] for reason in message.rejected_reason],
        }
    )
