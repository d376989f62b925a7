"""The account under everything that can happen between a controller and a disk, in any order.

At every moment: sent = acknowledged + reported missing + rejected + in flight, what was acknowledged is on
disk, and what came with a revoked key has changed nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from life import Life
from sender import Sender, picture

from rcm_daemon.core.rejection import Rule
from rcm_daemon.io.allow_list import allow, revoke
from rcm_daemon.io.door import Door
from rcm_daemon.io.keys import new_key_pair

PLANNED = 4
RARE = "reorder drop heartbeat activate revoke connect_anew kill restart controller_restarts".split()
NAME = "vendor"


class Account(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "journal.db"
        self.key = new_key_pair(self.folder, NAME).public
        self.door = Door(
            None, self.folder, None
        )  # no socket is locked: it looks keys up, as for every message
        self.is_allowed = False
        self.allow()
        self.digest = "first"
        self.n_runs = self.n_stacks = 0
        self.bundle_of = {}  # stack id -> the bundle active when its first message was taken
        self.new_run()
        self.open_id, self.next_index = None, 0
        self.life = Life(self.path, self.digest, door=self.door)

    def new_run(self):
        self.n_runs += 1
        self.sender = Sender(run_id=f"run-{self.n_runs}")
        self.frames = {}  # message number -> frames, of this run
        self.unanswered = {}  # numbers -> their place in the order of sending
        self.delivered = set()
        self.dropped = set()  # lost on the wire and not sent again
        self.refused = set()  # came with a revoked key, and not again
        self.answered = {}  # number -> status
        self.stored = {}  # number -> (stack id, index)
        self.wire = []  # numbers on their way

    def post(self, frames):
        number = self.sender.next_number - 1
        self.frames[number] = frames
        self.unanswered[number] = None
        self.wire.append(number)

    @rule()
    def start(self):
        self.n_stacks += 1
        self.open_id, self.next_index = f"s{self.n_stacks}", 0
        self.post(self.sender.start(self.open_id, PLANNED, (8, 8)))

    @precondition(lambda self: self.open_id is not None and self.next_index < PLANNED)
    @rule(spoilt=st.booleans())
    def slice(self, spoilt):
        keys = {"crc32": 1} if spoilt else {}
        image = picture(self.next_index, (8, 8))
        self.post(self.sender.slice(self.open_id, self.next_index, image, **keys))
        self.next_index += 1

    @precondition(lambda self: self.open_id is not None)
    @rule()
    def end(self):
        self.post(self.sender.end(self.open_id, self.next_index))
        self.open_id = None

    @precondition(lambda self: self.wire)
    @rule()
    def deliver(self):
        self.take_in(self.wire.pop(0))

    @precondition(lambda self: self.frames)
    @rule(data=st.data())
    def deliver_again(self, data):
        """A message that had been sent comes once more: a duplicate, or a retry before the rest."""
        delivered = sorted(set(self.frames) - set(self.wire) - self.dropped)
        if delivered:
            self.take_in(data.draw(st.sampled_from(delivered)))

    @precondition(lambda self: self.life.waiting)
    @rule(data=st.data())
    def deliver_again_what_waits(self, data):
        """A slice comes once more while the first is not embedded yet."""
        _, header = data.draw(st.sampled_from(self.life.waiting))
        if header.run_id == self.sender.run_id and header.msg_number not in self.wire:
            self.take_in(header.msg_number)

    @rule(what=st.sampled_from(RARE))
    def disturb(self, what):
        """Something that does not happen at every other message; one rule, lest a walk be nothing else."""
        getattr(self, what)()

    def reorder(self):
        if len(self.wire) > 1:
            self.wire[0], self.wire[1] = self.wire[1], self.wire[0]

    def drop(self):
        """A message is lost before anybody has seen it, and never sent again, as on plain SUB."""
        if not self.wire or self.wire[0] in self.delivered:
            return
        number = self.wire.pop(0)
        self.dropped.add(number)
        del self.unanswered[number]

    def heartbeat(self):
        self.life.receive(self.sender.heartbeat(), self.key)

    @precondition(lambda self: self.life.waiting)
    @rule(fails=st.booleans(), unlabelled=st.booleans())
    def embed(self, fails, unlabelled):
        self.life.embed(fails, unlabelled=unlabelled)

    @rule()
    def turn(self):
        self.life.turn()
        self.collect()

    @rule()
    def write(self):
        self.life.disk.write()

    def activate(self):
        self.digest = f"{self.digest[:8]}+"
        self.life.ledger.bundle_digest = self.digest

    def revoke(self):
        if self.is_allowed:
            revoke(self.folder, NAME)
            self.is_allowed = False

    @precondition(lambda self: not self.is_allowed)
    @rule()
    def allow(self):
        allow(self.folder, NAME, self.key, "m1")
        self.is_allowed = True

    def connect_anew(self):
        """The controller sends all again that it has no answer to, in order; old answers go nowhere."""
        self.life.lose_replies()
        self.wire = list(self.unanswered)
        self.refused.clear()

    def kill(self):
        """The process is gone between any two steps; what was not acknowledged is sent again, in order."""
        on_disk = self.life.journal.stacks().values()
        self.bundle_of = {(s["stack_id"], s["acquisition"]): s["bundle_digest"] for s in on_disk}
        self.life.journal.close()
        self.life = Life(self.path, self.digest, door=self.door)
        self.connect_anew()

    def restart(self):
        """A clean stop: everything in hand is finished first."""
        self.life.settle()
        self.collect()
        self.kill()

    def controller_restarts(self):
        """A new run; nothing of the old one is sent again."""
        if self.wire or self.refused:
            return
        self.life.settle()
        self.collect()
        self.all_is_settled()
        self.new_run()

    def take_in(self, number):
        stacks = {s.stack_id for s in self.life.ledger.open_stacks()}
        self.delivered.add(number)
        if not self.is_allowed:
            return self.is_refused_at_the_door(number)
        self.refused.discard(number)
        self.life.receive(self.frames[number], self.key)
        for stack in self.life.ledger.open_stacks():
            if stack.stack_id not in stacks:
                assert stack.bundle_digest == self.digest
                self.bundle_of[stack.stack_id, stack.acquisition] = stack.bundle_digest
        return None

    def is_refused_at_the_door(self, number):
        """It is answered and counted, and what is known of its instrument stays as it is."""
        known, n_refused = str(self.life.ledger.instrument("m1")), self.life.refused[Rule.KEY_REVOKED]
        self.life.receive(self.frames[number], self.key)
        assert self.life.refused[Rule.KEY_REVOKED] == n_refused + 1
        assert self.life.replies.pop().error.startswith("R401 key_revoked")
        assert str(self.life.ledger.instrument("m1")) == known
        if number in self.unanswered:
            self.refused.add(number)

    def collect(self):
        for reply in self.life.replies:
            if reply.run_id != self.sender.run_id or reply.of == "heartbeat":
                continue
            self.unanswered.pop(reply.msg_number, None)
            self.refused.discard(reply.msg_number)
            self.answered.setdefault(reply.msg_number, reply.status)
            if reply.of == "slice" and reply.status in ("stored", "duplicate"):
                self.stored[reply.msg_number] = (reply.stack_id, reply.index)
        self.life.replies.clear()

    @property
    def numbering(self):
        known = self.life.ledger.instrument("m1")
        return known.numbering if known is not None and known.run_id == self.sender.run_id else None

    def missing(self):
        numbering = self.numbering
        return {n for hole in numbering.holes for n in hole} if numbering is not None else set()

    @invariant()
    def sent_is_accounted_for(self):
        if not hasattr(self, "life"):
            return
        missing, numbering = self.missing(), self.numbering
        assert self.life.ledger.n_lost("m1", self.sender.run_id) == len(missing)
        answered = set(self.answered)
        known = set(range(numbering.next_number)) if numbering is not None else set()
        assert answered <= known, "what was answered is forgotten"
        assert not answered & missing, "what was answered is reported missing"
        # In flight: no answer, and neither refused nor reported; and what was lost where nobody can know it
        # before a later number is seen.
        rejected = {n for n, status in self.answered.items() if status == "rejected"}
        rejected |= self.refused - missing
        acknowledged = answered - rejected
        unseen = {n for n in self.dropped if n >= (numbering.next_number if numbering else 0)}
        in_flight = (set(self.unanswered) | unseen) - missing - rejected
        parts = acknowledged, missing, rejected, in_flight
        assert set().union(*parts) == set(range(self.sender.next_number))
        assert sum(map(len, parts)) == self.sender.next_number

    @invariant()
    def what_was_stored_is_on_disk(self):
        if not hasattr(self, "life"):
            return
        on_disk = {}
        for number, fields in self.life.journal.stacks().items():
            on_disk.setdefault(fields["stack_id"], set()).update(self.life.journal.slices(number)[0])
        for stack_id, index in self.stored.values():
            assert index in on_disk.get(stack_id, set()), (stack_id, index)

    @invariant()
    def a_stack_keeps_its_bundle(self):
        if not hasattr(self, "life"):
            return
        for stack in self.life.ledger.open_stacks():
            assert stack.bundle_digest == self.bundle_of[stack.stack_id, stack.acquisition]

    def all_is_settled(self):
        """With everything delivered and written, nothing is in flight."""
        assert not self.unanswered
        lost = self.missing()
        assert set(range(self.sender.next_number)) - set(self.answered) - self.dropped == set()
        assert lost <= self.dropped

    def teardown(self):
        if hasattr(self, "life"):
            if not self.is_allowed:
                self.allow()
            if self.refused:
                self.connect_anew()
            while self.wire:
                self.take_in(self.wire.pop(0))
            self.life.settle()
            self.collect()
            self.all_is_settled()
            self.sent_is_accounted_for()
            self.what_was_stored_is_on_disk()
            self.life.journal.close()
            shutil.rmtree(self.folder)


TestAccount = pytest.mark.hazard("H26")(pytest.mark.hazard("H56")(pytest.mark.timeout(600)(Account.TestCase)))
TestAccount.settings = settings(max_examples=150, stateful_step_count=60)
