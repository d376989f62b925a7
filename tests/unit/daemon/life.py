"""A daemon without processes, sockets or threads: networks and disk answer when they are told to."""

from __future__ import annotations

from collections import Counter

import numpy as np

from rcm_daemon.core.acknowledgement import Reply
from rcm_daemon.core.admission import check_instrument, may_account
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.stack import EmbeddedSlice
from rcm_daemon.core.wire import parse
from rcm_daemon.io.journal import Journal
from rcm_daemon.recording import Recording


class Disk:
    """Stands where the writer stands; what was submitted is written when it is told to."""

    def __init__(self, journal):
        self.journal, self.rows, self.written = journal, None, False
        self.damage = self.death = ""

    @property
    def is_free(self):
        return self.rows is None

    def submit(self, rows):
        assert self.is_free
        self.rows = rows

    def write(self):
        if self.rows is not None and not self.written:
            self.journal.write(self.rows)
            self.written = True

    def close(self):
        self.write()
        self.journal.close()

    def take_written(self):
        if not self.written:
            return False
        self.rows, self.written = None, False
        return True


class Life:
    """One life of a daemon, from a journal to a kill; networks answer when they are told to."""

    def __init__(self, path, digest, n_damaged=0, door=None):
        self.door = door
        self.refused = Counter()
        self.ledger = Ledger()
        self.ledger.bundle_digest = digest
        self.journal = Journal(path)
        self.disk = Disk(self.journal)
        self.recording = Recording(self.ledger, self.journal, self.disk)
        self.peer, self._n_peers = b"peer", 1
        self.waiting = []
        self.replies = []
        for restored in self.recording.restored:
            restored.stack.pending.clear()  # labelled again
        assert self.recording.n_damaged == n_damaged

    def receive(self, frames, key=None):
        """Take a message in; with a `door`, as one of the holder of `key`."""
        bound = None
        try:
            bound = self.door.instrument_of(key) if self.door is not None else "*"
            message = parse(frames)
            check_instrument(message, bound)
        except Rejection as rejection:
            if may_account(bound, rejection.origin.instrument):
                return self.refuse(rejection, self.ledger.refuse(rejection))
            self.refused[rejection.rule] += 1
            self.replies.append(Reply.refusal(self.peer, rejection))
            return None
        try:
            outcome = self.ledger.accept(message, 0.0)
        except Rejection as rejection:
            return self.refuse(rejection, self.ledger.reports(rejection))
        status = "stored" if outcome.status == "accepted" else outcome.status
        reply = Reply.to(self.peer, message, status)
        if outcome.embed is not None and isinstance(message, Slice):
            slice_ = outcome.embed, message.header.index
            self.recording.note("m1", [*outcome.changed, outcome.embed], reply, slice_)
            self.waiting.append((outcome.embed, message.header))
        else:
            repeats = self.ledger.slice_of(message) if isinstance(message, Slice) else None
            self.recording.note("m1", outcome.changed, reply, repeats=repeats)
        return None

    def refuse(self, rejection, stack):
        self.refused[rejection.rule] += 1
        reply = Reply.refusal(self.peer, rejection)
        if self.ledger.instrument(rejection.origin.instrument) is None:
            self.replies.append(reply)
        else:
            self.recording.note(rejection.origin.instrument, [stack] if stack else [], reply)

    def embed(self, fails, *, unlabelled=False):
        """Embed the next slice, or fail to; one that has its embedding may fail to be labelled at once."""
        stack, header = self.waiting.pop(0)
        if fails:
            self.ledger.unusable(stack, header.index, Rule.NOT_EMBEDDED, "no")
            self.recording.refused(stack, header.index, "R301 not_embedded: no")
        else:
            stack.pending.discard(header.index)
            self.recording.embedded(
                stack, EmbeddedSlice(header.index, header.z_um, np.full(4, header.index, np.float32))
            )
            if unlabelled:
                self.refuse_labelled(stack, header.index)
        if stack.state != "open":
            self.recording.result(stack, "{}")

    def refuse_labelled(self, stack, index):
        """A slice that has its embedding cannot be labelled."""
        self.ledger.unusable(stack, index, Rule.NOT_LABELLED, "no")
        self.recording.refused(stack, index, "R302 not_labelled: no")

    def lose_replies(self):
        """Whoever waited for answers has gone, and comes again as somebody else."""
        self.peer, self._n_peers = b"peer %d" % self._n_peers, self._n_peers + 1
        self.replies.clear()

    def turn(self):
        self.replies += [reply for reply in self.recording.advance() if reply.peer == self.peer]

    def settle(self):
        while self.waiting:
            self.embed(fails=False)
        self.turn()
        while not self.recording.is_settled:
            self.disk.write()
            self.turn()
