"""A large journal that rots: the daemon serves first, finds it, ends, and is mended at its next start."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from harness import Daemon
from sender import Sender, picture
from tiny_bundle import FIELD

from rcm_daemon.core.account import ResultRow, SliceRow, StackRow
from rcm_daemon.core.stack import Acquisition, EmbeddedSlice, Received
from rcm_daemon.io.journal import Journal
from rcm_daemon.io.journal_salvage import CHECKED_FIRST_BYTES

N_STACKS = 400
EMBEDDING = np.arange(24_000, dtype=np.float32)


def ended_stack(number):
    stack = Acquisition("m0", f"s{number}", 1, "run", 0, 0, FIELD, "uint8", 0.5, 0.0, number=number)
    stack.ended = "complete"
    return StackRow.of(stack)


@pytest.mark.hazard("H27")
def test_a_large_damaged_journal_is_found_while_serving_and_mended_at_the_next_start(tmp_path, bundle):
    daemon = Daemon(tmp_path, bundle)
    controller, results, sender = daemon.controller(), daemon.subscribe(), Sender()
    controller.send_multipart(sender.slice("open", 0, picture(0, FIELD)))
    results.until(n_slices=1)
    assert daemon.stop() == 0
    path = tmp_path / "state/journal.db"
    journal = Journal(path)
    for number in range(10, 10 + N_STACKS):
        slice_row = SliceRow(number, Received(0.0, bytes(32)), EmbeddedSlice(0, 0.0, EMBEDDING * number))
        journal.write([ended_stack(number), slice_row, ResultRow(number, "{}")])
    journal.close()
    data = path.read_bytes()
    assert len(data) > CHECKED_FIRST_BYTES
    # Of one stack's embedding, which goes over many pages, one names a page as the next that is not there.
    at = data.index((EMBEDDING * 210)[6_000:6_100].tobytes()) // 4096 * 4096
    path.write_bytes(data[:at] + bytes([7]) * 4 + data[at + 4 :])

    daemon = Daemon(tmp_path, bundle, await_ready=False)
    assert daemon.process.wait(60) == 1
    log = daemon.log.read_text()
    assert log.index("msg=ready", log.index("msg=stopped")) < log.index("the journal is damaged")
    daemon.kill()

    daemon = Daemon(tmp_path, bundle)
    assert daemon.subscribe().until(stack_id="open", n_slices=1)["state"] == "open"
    assert daemon.ask({"htype": "get_health"})["n_damaged"] > 0
    assert daemon.stop() == 0
    assert (tmp_path / "state/journal.damaged-1.db").exists()
    command = [sys.executable, "-m", "rcm_daemon", "stacks", "--state-dir", str(tmp_path / "state")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(listed) == 1 + 1 + N_STACKS  # all accounts are there, of one stack the slice is not
    assert [line.split()[1] for line in listed if line.split()[4] == "0"] == ["s210"]
