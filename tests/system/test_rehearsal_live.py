"""At a regular frame rate a daemon rehearses, and nobody can tell but by the clock."""

from __future__ import annotations

import threading
import time

import pytest
from harness import Daemon
from sender import Sender, picture
from tiny_bundle import FIELD

N_SLICES = 16
INTERVAL_S = 0.05
OF_TIME = {"time_s", "time_ns", "wait_ms", "embed_ms", "label_ms", "total_ms"}
OF_THE_DAEMON = {"seq", "topic"}


def sweep(daemon: Daemon) -> list[dict[str, object]]:
    """Send a stack at a frame rate; returns each slice's result and the last."""
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    messages, due_s = [], time.monotonic()
    for index in range(N_SLICES):
        threading.Event().wait(max(0.0, due_s - time.monotonic()))
        due_s += INTERVAL_S
        controller.send_multipart(sender.slice("a", index, picture(index, FIELD)))
        messages.append(results.until(n_slices=index + 1))
    threading.Event().wait(INTERVAL_S)  # time to rehearse for a slice that does not come
    controller.send_multipart(sender.end("a", N_SLICES))
    return [*messages, results.until(state="complete")]


def told(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    return [
        {key: value for key, value in message.items() if key not in OF_TIME | OF_THE_DAEMON}
        for message in messages
    ]


@pytest.mark.parametrize("options", [(), ("--estimator", "paper")])
def test_a_rehearsal_changes_no_result_and_counts_as_no_slice(tmp_path, bundle, options):
    found = {}
    for name, share in (("with", "0.4"), ("without", "0")):
        folder = tmp_path / name
        folder.mkdir()
        daemon = Daemon(folder, bundle, *options, RCM_REHEARSAL_SHARE=share)
        found[name] = sweep(daemon)
        health = daemon.ask({"htype": "get_health"})
        assert (health["n_slices"], health["n_cnn_runs"], health["n_waiting"]) == (N_SLICES, N_SLICES, 0)
        assert (health["n_rehearsed"] > 0) == (name == "with")
        seqs = [message["seq"] for message in found[name]]
        assert seqs == list(range(seqs[0], seqs[0] + N_SLICES + 1))  # no message that nobody was to get
        assert daemon.stop() == 0
    assert told(found["with"]) == told(found["without"])
