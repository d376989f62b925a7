"""A ledger driven by frames, embedding at once: what its tests stand on."""

from __future__ import annotations

import numpy as np
import pytest

from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.pipeline import Estimation, Recurrence, take_in
from rcm_daemon.core.rejection import Rejection
from rcm_daemon.core.stack import EmbeddedSlice
from rcm_daemon.core.wire import parse


def recurrent(embeddings, z_um, weight):
    """Say epidermis above 9 um, DEJ to 21 um, dermis below."""
    labels = np.digitize(z_um, [9.0, 21.0])
    return Recurrence(np.eye(3, dtype=np.float32)[labels])


class Desk:
    """A ledger that is handed frames and embeds at once."""

    def __init__(self, **settings):
        self.ledger = Ledger(**settings)
        self.now_s = 0.0

    def send(self, frames):
        outcome = self.ledger.accept(parse(frames), self.now_s)
        if outcome.embed is not None:
            header = parse(frames).header
            new = EmbeddedSlice(header.index, header.z_um, np.zeros(4, np.float32))
            take_in(self.ledger, outcome.embed, [new], recurrent, Estimation())
        return outcome

    @property
    def stack(self):
        (stack,) = self.ledger.open_stacks()
        return stack

    def refused(self, frames):
        with pytest.raises(Rejection) as caught:
            self.send(frames)
        return caught.value.rule


def indices(stack):
    return [s.index for s in stack.partial.slices]
