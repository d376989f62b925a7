"""Stacks that had ended, with a result, before the restart: labelled again where more comes for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rcm_daemon.inference import NewSlice

if TYPE_CHECKING:
    from rcm_daemon.bundles import Bundles
    from rcm_daemon.core.stack import Acquisition, EmbeddedSlice


class Dormant:
    """Keeps their slices until they are labelled; where their bundle is gone they never are.

    Until then the result that is written of such a stack stays, whatever comes.
    """

    def __init__(self, bundles: Bundles) -> None:
        self._bundles = bundles
        self._embedded: dict[int, list[EmbeddedSlice]] = {}
        self._waking: set[int] = set()

    def lay(self, stack: Acquisition, embedded: list[EmbeddedSlice]) -> None:
        """Take a stack; one without slices needs no labelling."""
        if embedded:
            self._embedded[stack.number] = embedded

    def kept(self, stack: Acquisition) -> set[int]:
        """Return the indices of the slices that a stack's result is of, none if it is not among these."""
        return {one.index for one in self._embedded.get(stack.number, ())}

    def wake(self, stack: Acquisition) -> bool:
        """Have a stack labelled, if it is among these; whether it is: its message follows then."""
        embedded = self._embedded.get(stack.number)
        if embedded is None:
            return False
        if stack.number not in self._waking and (desk := self._bundles.desk_of(stack.bundle_digest)):
            self._waking.add(stack.number)
            desk.label(stack, [NewSlice(one) for one in embedded], time.monotonic())
        return True

    def lie_down(self, stack: Acquisition) -> None:
        """Go on as before: the bundle could not be served."""
        self._waking.discard(stack.number)

    def refused(self, stack: Acquisition) -> None:
        """Let go of a stack that will not be labelled, if this was the last slice that could have been."""
        if not stack.pending:
            self.woken(stack)

    def woken(self, stack: Acquisition) -> None:
        """Let go of a stack that is labelled."""
        self._waking.discard(stack.number)
        self._embedded.pop(stack.number, None)
