"""The state of a stack as a numbered message: to all subscribers, and kept for those who ask later."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rcm_daemon.core.message import Latency, Source, StrataMessage, build_message
from rcm_daemon.core.pseudonyms import pseudonymised
from rcm_daemon.io.revisions import Revisions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rcm_daemon.core.pseudonyms import Pseudonyms
    from rcm_daemon.core.stack import Acquisition, StackKey
    from rcm_daemon.io.results import ResultsSocket
    from rcm_daemon.io.state_dir import StateDir


class Publishing:
    """Publishes stacks; keeps the newest message of open ones and the last of `n_ended_kept` ended ones.

    With `pseudonyms`, all that others get from here bears them instead of ids.

    Raises
    ------
    RcmError
        The state folder cannot be written.
    """

    def __init__(
        self,
        results: ResultsSocket,
        state_dir: StateDir,
        n_ended_kept: int,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        self._results = results
        self._pseudonyms = pseudonyms
        self._state_dir = state_dir
        self._revisions = Revisions(state_dir)
        self.n_ended_kept = n_ended_kept
        self._open: dict[StackKey, StrataMessage] = {}
        self._ended: OrderedDict[StackKey, bytes] = OrderedDict()  # JSON, as it was sent

    def publish(self, stack: Acquisition, source: Source, latency: Latency, n_lost: int) -> StrataMessage:
        """Send the stack as it stands, as its next revision; returns the message with the ids as they are."""
        stack.revision = self._revisions.following(stack.key, stack.revision)
        plain = build_message(
            stack,
            source,
            latency,
            seq=self._state_dir.next_seq(),
            time_ns=time.time_ns(),
            n_lost=n_lost,
        )
        message = self._for_others(plain)
        is_open = message.state == "open"
        payload = message.to_json().encode()
        self._results.publish(stack.key, message.topic, payload, keep=is_open)
        key = _key(message)
        self._open.pop(key, None)
        self._ended.pop(key, None)
        if is_open:
            self._open[key] = message
        else:
            self._ended[key] = payload
            while len(self._ended) > self.n_ended_kept:
                self._ended.popitem(last=False)
        return plain

    def take_up(self, stacks: Iterable[Acquisition]) -> None:
        """Go on where stacks from before a restart were, by the messages that were sent of them."""
        for stack in stacks:
            stack.revision = self._revisions.resumed(stack.key, stack.revision)

    def close(self) -> None:
        """Keep the revisions for the next start."""
        self._revisions.close()

    def recall(self, messages: Iterable[str]) -> None:
        """Take over final messages of before a restart; such as another version wrote are left out."""
        for text in messages:
            try:
                message = self._for_others(StrataMessage.model_validate_json(text))
            except ValidationError:
                continue
            self._ended[_key(message)] = message.to_json().encode()

    def _for_others(self, message: StrataMessage) -> StrataMessage:
        return pseudonymised(message, self._pseudonyms) if self._pseudonyms is not None else message

    @property
    def seq(self) -> int:
        """The last number given to a message."""
        return self._state_dir.seq

    @property
    def n_open(self) -> int:
        """Stacks that are open and have been published."""
        return len(self._open)

    def newest(self, stack_id: str) -> list[StrataMessage]:
        """Return the newest messages of all open stacks, or of all those known by one id."""
        if not stack_id:
            return list(self._open.values())
        ended = [payload for key, payload in self._ended.items() if key[1] == stack_id]
        is_open = [message for message in self._open.values() if message.stack_id == stack_id]
        return [*map(StrataMessage.model_validate_json, ended), *is_open]


def _key(message: StrataMessage) -> StackKey:
    return message.instrument, message.stack_id, message.acquisition
