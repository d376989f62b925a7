"""A worker that answers when it is told to: what the tests of the desk stand on."""

from __future__ import annotations

import numpy as np

from rcm_daemon.bundle.channel import BundleInfo
from rcm_daemon.bundle.supervisor import Answer, Died
from rcm_daemon.core.records import Slice, SliceHeader
from rcm_daemon.core.stack import Acquisition
from rcm_daemon.inference import SliceJob

EPOCH_S = 1_000.0
SIZE = 4


def stack_named(stack_id):
    return Acquisition("m1", stack_id, 1, "run", 0, 0, (4, 4), "uint8", 0.5, EPOCH_S)


def job(stack, index):
    header = SliceHeader(
        instrument=stack.instrument,
        run_id="run",
        msg_number=index,
        stack_id=stack.stack_id,
        index=index,
        z_um=3.0 * index,
        shape=(4, 4),
        dtype="uint8",
        max_value=0,
        byte_order="little",
        encoding="raw",
        pixel_size_um=0.5,
        crc32=0,
        time_s=0,
        time_ns=0,
    )
    return SliceJob(stack, Slice(header, memoryview(bytes(16))), 1)


class FakeSupervisor:
    """Stands where a Supervisor stands; an embedding is the slice's index, repeated."""

    def __init__(self):
        self.bundle = BundleInfo("tiny", "1", "0" * 64, "cpu", SIZE, 1)
        self.memory = self
        self.due_s = None
        self.in_hand = False
        self.is_ready = True
        self.embedded_indices = []
        self.stacks = []
        self.asked = []
        self.said = None
        self.unlabelled_index = None
        self._request = None
        self._events = []

    @property
    def is_free(self):
        return self.is_ready and not self.in_hand

    def write(self, blob):
        assert len(blob) == 16

    def write_stack(self, stack, after=0):
        self.stacks.append(stack)

    def request(self, fields, now_s):
        assert self.is_free
        self._request, self.in_hand = fields, True
        self.asked.append(fields)
        if fields["kind"] == "embed":
            self.embedded_indices.append(fields["header"]["index"])

    def follow_up(self, fields):
        assert self._request["stack_follows"] and self.in_hand
        assert fields["n"] == len(self.stacks[-1])
        self.asked[-1] = self.asked[-1] | fields

    def advance(self, now_s):
        events, self._events = self._events, []
        return events

    def answer(self):
        """Answer the request in hand well; returns its kind, `both` for embedding and labelling in one."""
        kind = self._request["kind"]
        times = {"started_ns": 2, "finished_ns": 3}
        if "known" in self.asked[-1] and self.said is not None:
            times["said"] = self.said
        labels = kind == "label" or self._request["stack_follows"]
        error, rows = "", b""
        if labels and self.unlabelled_index in [s.index for s in self.stacks[-1].slices]:
            error = "the recurrent network did not answer"
        elif labels:
            rows = np.tile(np.float32([1, 0, 0]), (len(self.stacks[-1]), 1)).tobytes()
        if kind == "embed":
            embedding = np.full(SIZE, self._request["header"]["index"], np.float32).tobytes()
            fields = {
                "kind": "embedded",
                "weight": 1.0,
                "flags": [],
                "n_bytes": len(embedding),
                "error": error,
            }
            self._push(Answer(fields | times, embedding + rows))
            return "both" if labels else "embed"
        if error:
            self.fail(error)
        else:
            self._push(Answer({"kind": "labelled", **times}, rows))
        return kind

    def fail(self, sentence):
        self._push(Answer({"kind": "failed", "error": sentence, "started_ns": 2, "finished_ns": 3}, b""))

    def _push(self, event):
        self.in_hand = False
        self._events.append(event)

    def die(self, refused=""):
        self._events.append(Died("the worker died", self.in_hand, refused))
        self.in_hand = self.is_ready = False

    def come_back(self):
        self.is_ready = True
