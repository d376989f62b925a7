"""At a regular frame rate a daemon rehearses, and nobody can tell but by the clock."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from harness import Daemon
from sender import Sender, picture
from tiny_bundle import FIELD

from rcm_daemon.bundle.location import default_bundle_path

if TYPE_CHECKING:
    from pathlib import Path

    import zmq
    from harness import Subscriber

N_SLICES = 12
MOST_STACKS = 20
INTERVAL_S = 0.05
OF_THE_MOMENT = {"time_s", "time_ns", "wait_ms", "embed_ms", "label_ms", "total_ms", "seq"}


class Microscope:
    """Sends stacks at a frame rate, and keeps what is told of each slice."""

    def __init__(self, daemon: Daemon) -> None:
        self.results: Subscriber = daemon.subscribe()
        self.controller: zmq.Socket[bytes] = daemon.controller()
        self.sender = Sender()
        self.seqs: list[int] = []

    def sweep(self, stack_id: str) -> list[dict[str, object]]:
        messages, due_s = [], time.monotonic()
        for index in range(N_SLICES):
            threading.Event().wait(max(0.0, due_s - time.monotonic()))
            due_s += INTERVAL_S
            self.controller.send_multipart(self.sender.slice(stack_id, index, picture(index, FIELD)))
            messages.append(self.results.until(stack_id=stack_id, n_slices=index + 1))
        threading.Event().wait(INTERVAL_S)  # time to rehearse for a slice that does not come
        self.controller.send_multipart(self.sender.end(stack_id, N_SLICES))
        messages.append(self.results.until(stack_id=stack_id, state="complete"))
        self.seqs += [message["seq"] for message in messages]
        return [{k: v for k, v in message.items() if k not in OF_THE_MOMENT} for message in messages]


@pytest.mark.parametrize("which", ["tiny", "default"])
def test_a_rehearsal_changes_no_result_and_counts_as_no_slice(tmp_path: Path, bundle: Path, which: str):
    folder = default_bundle_path() if which == "default" else bundle
    options = ("--provider", "cpu", "--variant", "fp32")
    with_, without = (
        Daemon(tmp_path / name, folder, *options, RCM_REHEARSAL_SHARE=share, RCM_N_THREADS="1")
        for name, share in ((make(tmp_path, "with"), "0.4"), (make(tmp_path, "without"), "0"))
    )
    rehearsing, plain = Microscope(with_), Microscope(without)
    for number in range(MOST_STACKS):  # on a busy machine slices may come irregularly
        assert rehearsing.sweep(f"s{number}") == plain.sweep(f"s{number}")
        health = with_.ask({"htype": "get_health"})
        if health["n_rehearsed"]:
            break
    assert health["n_rehearsed"]
    n_slices = (number + 1) * N_SLICES
    assert (health["n_slices"], health["n_cnn_runs"], health["n_waiting"]) == (n_slices, n_slices, 0)
    assert rehearsing.seqs == plain.seqs == list(range(plain.seqs[0], plain.seqs[-1] + 1))
    assert without.ask({"htype": "get_health"})["n_rehearsed"] == 0
    assert with_.stop() == without.stop() == 0


def make(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name
