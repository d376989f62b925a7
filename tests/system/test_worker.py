"""The networks' process killed, crashing and hanging under a running daemon, on plain SUB."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.sitecustomize import CRASH, CRASH_ONCE, HANG, HANG_ONCE, STICKY_ONCE
from harness import Daemon
from sender import Sender, picture
from tiny_bundle import FIELD

FAULTS = str(Path(__file__).parents[1] / "faults")


@pytest.fixture
def daemon(tmp_path, bundle):
    daemon = Daemon(tmp_path, bundle, RCM_SLICE_TIMEOUT_S="1", PYTHONPATH=FAULTS, FAULTS=str(tmp_path))
    yield daemon
    assert daemon.stop() == 0


def faulty(index, grey):
    image = picture(index, FIELD)
    image[0, 0] = grey
    return image


def play(daemon, images):
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    controller.send_multipart(sender.start("s", len(images), FIELD))
    for index, image in enumerate(images):
        controller.send_multipart(sender.slice("s", index, image))
    controller.send_multipart(sender.end("s", len(images)))
    while (message := results.next())["state"] == "open":
        pass
    return message


@pytest.mark.parametrize(
    "grey",
    [
        pytest.param(CRASH_ONCE, marks=pytest.mark.hazard("H49")),
        pytest.param(HANG_ONCE, marks=pytest.mark.hazard("H48")),
        pytest.param(STICKY_ONCE, marks=pytest.mark.hazard("H47")),
    ],
)
def test_a_worker_that_fails_mid_stack_costs_no_slice(daemon, grey):
    images = [picture(i, FIELD) for i in range(12)]
    images[5] = faulty(5, grey)
    final = play(daemon, images)
    assert (final["state"], final["n_slices"], final["n_rejected"], final["n_lost"]) == ("complete", 12, 0, 0)
    health = daemon.ask({"htype": "get_health"})
    assert (health["n_worker_restarts"], health["n_cnn_runs"]) == (1, 12)


@pytest.mark.hazard("H63")
@pytest.mark.parametrize("grey", [CRASH, HANG])
def test_a_slice_that_fails_its_worker_twice_is_quarantined(daemon, grey):
    images = [picture(i, FIELD) for i in range(6)]
    images[2] = faulty(2, grey)
    final = play(daemon, images)
    assert (final["n_slices"], final["rejected_index"], final["n_missing"]) == (5, [2], 0)
    assert final["rejected_reason"][0].startswith("R303 quarantined: the worker ")
    assert daemon.ask({"htype": "get_health"})["n_worker_restarts"] == 2


@pytest.mark.hazard("H49")
def test_killed_from_outside_again_and_again(daemon):
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    controller.send_multipart(sender.start("s", 30, FIELD))
    for index in range(30):
        controller.send_multipart(sender.slice("s", index, picture(index, FIELD)))
        if index % 10 == 5:
            os.kill(daemon.ask({"htype": "get_health"})["worker_pid"], signal.SIGKILL)
            results.until(n_slices=index + 1)
    controller.send_multipart(sender.end("s", 30))
    final = results.until(state="complete")
    assert (final["n_slices"], final["n_lost"], final["n_rejected"]) == (30, 0, 0)


def test_the_worker_does_not_outlive_a_killed_daemon(daemon):
    worker = daemon.ask({"htype": "get_health"})["worker_pid"]
    ended = os.pidfd_open(worker)
    daemon.process.kill()
    import select

    assert select.select([ended], [], [], 30)[0], "the worker lives on"
    os.close(ended)
    daemon.process.wait()
    daemon.process.returncode = 0


def test_the_daemon_never_imports_the_networks():
    """Neither ONNX Runtime nor OpenCV: the first would crash or hang here, both cost memory."""
    program = (
        "import sys, rcm_daemon.service, rcm_daemon.cli\n"
        "print([name for name in ('onnxruntime', 'cv2', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
