"""What is on disk after a crash, and what becomes of messages that are sent again."""

from __future__ import annotations

import pytest
from life import Life
from sender import Sender, picture

SHAPE = (8, 8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
def life(path):
    return Life(path, "bundle")


def killed(life, path):
    life.journal.close()
    return Life(path, "bundle")


def whole_stack(sender, stack_id="s", n=3):
    frames = [sender.start(stack_id, n, SHAPE)]
    frames += [sender.slice(stack_id, i, picture(i, SHAPE)) for i in range(n)]
    return [*frames, sender.end(stack_id, n)]


def answers(life):
    life.turn()
    found = [(reply.of, reply.index, reply.status) for reply in life.replies]
    life.replies.clear()
    return found


def only_stack(life):
    (known,) = [life.ledger.instrument("m1")]
    return known.current


def test_nothing_is_answered_before_it_is_written(life):
    sender = Sender()
    life.receive(sender.start("s", 1, SHAPE))
    life.receive(sender.slice("s", 0, picture(0, SHAPE)))
    assert answers(life) == []
    life.disk.write()
    assert answers(life) == [("stack_start", -1, "stored")]
    life.embed(fails=False)
    assert answers(life) == []
    life.disk.write()
    assert answers(life) == [("slice", 0, "stored")]


def test_what_is_being_written_counts_as_unwritten_until_it_is_on_disk(life):
    life.receive(Sender().start("s", 1, SHAPE))
    assert life.recording.n_unwritten == 1
    life.turn()  # handed to the disk, which takes its time
    assert life.recording.n_unwritten == 1
    assert not life.recording.is_settled
    life.disk.write()
    life.turn()
    assert life.recording.n_unwritten == 0
    assert life.recording.is_settled


@pytest.mark.hazard("H26")
@pytest.mark.parametrize("n_embedded", range(4))
def test_an_end_is_not_written_before_the_slices_that_came_before_it(life, path, n_embedded):
    """Killed with some slices embedded; sent again, the stack becomes what it would have been."""
    frames = whole_stack(Sender())
    for one in frames:
        life.receive(one)
    for _ in range(n_embedded):
        life.embed(fails=False)
    life.turn()
    life.disk.write()
    life = killed(life, path)
    for one in frames:
        life.receive(one)
    life.settle()
    stack = only_stack(life)
    assert (stack.acquisition, stack.state, sorted(stack.received)) == (1, "complete", [0, 1, 2])
    assert (stack.n_rejected, stack.n_conflicts, life.ledger.n_lost("m1")) == (0, 0, 0)
    assert {reply.status for reply in life.replies} <= {"stored", "duplicate"}
    assert len(life.replies) == len(frames)


@pytest.mark.hazard("H15")
@pytest.mark.hazard("H56")
@pytest.mark.parametrize("restart", [False, True])
def test_everything_sent_again_after_it_ended_is_a_duplicate(life, path, restart):
    """Two acquisitions of one stack and another one after it; all their messages come once more."""
    sender = Sender()
    frames = [*whole_stack(sender), *whole_stack(sender), *whole_stack(sender, "t", 2)]
    for one in frames:
        life.receive(one)
    life.settle()
    life.replies.clear()
    if restart:
        life = killed(life, path)
    before = {stack.key for stack in life.ledger.open_stacks()}
    for one in frames:
        life.receive(one)
    life.settle()
    assert [reply.status for reply in life.replies] == ["duplicate"] * len(frames)
    assert {stack.key for stack in life.ledger.open_stacks()} == before
    assert [fields["n_rejected"] for fields in life.journal.stacks().values()] == [0, 0, 0]


@pytest.mark.hazard("H26")
@pytest.mark.parametrize("ends_by", ["end", "next"])
def test_a_slice_refused_after_its_stack_had_ended_is_no_duplicate_after_a_kill(life, path, ends_by):
    sender = Sender()
    life.receive(sender.start("s", 2, SHAPE))
    refused = sender.slice("s", 0, picture(0, SHAPE))
    life.receive(refused)
    if ends_by == "end":
        life.receive(sender.end("s", 1))
    life.receive(sender.start("t", 1, SHAPE))
    life.embed(fails=False, unlabelled=True)
    life.settle()
    assert [reply.status for reply in life.replies if reply.of == "slice"] == ["rejected"]
    life = killed(life, path)
    life.receive(refused)
    life.settle()
    assert [(reply.of, reply.status) for reply in life.replies] == [("slice", "rejected")]


@pytest.mark.hazard("H56")
def test_another_slice_of_a_second_acquisition_is_no_duplicate_of_the_first(life):
    sender = Sender()
    for one in [*whole_stack(sender, n=1), sender.start("s", 2, SHAPE)]:
        life.receive(one)
    same_picture_again = sender.slice("s", 0, picture(0, SHAPE))
    life.receive(same_picture_again)
    life.settle()
    stack = only_stack(life)
    assert (stack.acquisition, sorted(stack.received)) == (2, [0])
    assert [r.status for r in life.replies if r.of == "slice"] == ["stored", "stored"]


@pytest.mark.hazard("H16")
def test_a_conflict_is_answered_as_one_and_survives(life, path):
    sender = Sender()
    life.receive(sender.slice("s", 0, picture(0, SHAPE)))
    life.receive(sender.slice("s", 0, picture(1, SHAPE)))
    life.settle()
    assert [reply.status for reply in life.replies] == ["stored", "conflict"]
    life = killed(life, path)
    assert only_stack(life).conflict_index == [0]


@pytest.mark.hazard("H18")
def test_losses_and_refusals_survive(life, path):
    sender = Sender()
    life.receive(sender.start("s", 5, SHAPE))
    life.receive(sender.slice("s", 0, picture(0, SHAPE), crc32=1))
    sender.lose(2)
    life.receive(sender.slice("s", 3, picture(3, SHAPE)))
    life.receive(sender.slice("s", 4, picture(4, SHAPE)))
    life.embed(fails=False)
    life.embed(fails=True)
    life.settle()
    for _ in range(2):
        life = killed(life, path)
        stack = only_stack(life)
        assert (stack.rejected_index, stack.n_rejected, stack.missing_index) == ([0, 4], 2, [1, 2])
        assert [reason[:4] for reason in stack.rejected_reason] == ["R114", "R301"]
        assert life.ledger.n_lost("m1") == 2


def test_a_slice_refused_when_it_was_written_already_is_gone_after_a_restart(life, path):
    sender = Sender()
    life.receive(sender.slice("s", 0, picture(0, SHAPE)))
    life.settle()
    stack = only_stack(life)
    life.refuse_labelled(stack, 0)
    life.settle()
    life = killed(life, path)
    stack = only_stack(life)
    assert (stack.received, stack.rejected_index) == ({}, [0])


@pytest.mark.hazard("H27")
def test_a_damaged_slice_is_reported_by_its_stack_once_and_may_come_again(life, path):
    sender = Sender()
    frames = whole_stack(sender)[:-1]
    for one in frames:
        life.receive(one)
    life.settle()
    life.journal._db.execute("UPDATE slice SET z_um = 7.5 WHERE idx = 1")
    life.journal.close()
    life = Life(path, "bundle", n_damaged=1)
    stack = only_stack(life)
    assert (sorted(stack.received), stack.missing_index, stack.rejected_index) == ([0, 2], [1], [-1])
    assert stack.rejected_reason[0].startswith("R304 damaged")
    life.receive(frames[2])
    life.settle()
    assert [reply.status for reply in life.replies] == ["stored"]
    life = killed(life, path)
    stack = only_stack(life)
    assert (sorted(stack.received), stack.rejected_index) == ([0, 1, 2], [-1])


@pytest.mark.hazard("H36")
def test_memory_is_bounded_while_nothing_can_be_written(life):
    """Refusals of one stack are merged as they come; slices are counted, and reading stops at a limit."""
    sender = Sender()
    life.receive(sender.start("s", 0, SHAPE))
    life.turn()
    for _ in range(500):
        life.receive(sender.slice("s", 0, picture(0, SHAPE), crc32=1))
    assert life.recording.n_unwritten <= 2
    assert life.recording.has_room
    life.settle()
    assert only_stack(life).n_rejected == 500


@pytest.mark.parametrize("other_number", [False, True])
def test_a_repetition_of_a_slice_that_then_fails_is_refused_with_it(life, other_number):
    sender = Sender()
    first = sender.slice("s", 0, picture(0, SHAPE))
    again = sender.slice("s", 0, picture(0, SHAPE)) if other_number else first
    life.receive(first)
    life.receive(again)
    life.embed(fails=True)
    life.settle()
    assert answers(life) == [("slice", 0, "rejected"), ("slice", 0, "rejected")]
    life.receive(again)
    life.settle()
    assert answers(life) == [("slice", 0, "stored")]
    assert set(life.journal.slices(1)[0]) == {0}


def test_a_slice_that_cannot_be_labelled_before_it_is_written_is_not_called_stored(life):
    sender = Sender()
    life.receive(sender.slice("s", 0, picture(0, SHAPE)))
    life.embed(fails=False, unlabelled=True)
    life.settle()
    assert answers(life) == [("slice", 0, "rejected")]
    assert life.journal.slices(1)[0] == {}
