"""The simulated microscope, the daemon and a viewer together, with the default bundle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from harness import PATIENCE_MS, Daemon, free_endpoint
from sender import Sender

from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.simulator import make_phantom

FPS = 10
N = 30


@pytest.fixture
def daemon(tmp_path):
    daemon = Daemon(tmp_path, default_bundle_path())
    yield daemon
    assert daemon.stop() == 0


def play(daemon):
    """Send N slices of 1000 x 1000 at the frame rate; how many had no result when the next was due."""
    phantom = make_phantom(5)
    images = [phantom.render(i % len(phantom)) for i in range(N)]
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    n_late = n_answered = 0
    due_s = time.monotonic()
    for index, image in enumerate(images):
        controller.send_multipart(sender.slice("s", index, image))
        due_s += 1 / FPS
        while (left_s := due_s - time.monotonic()) > 0:
            if results.socket.poll(int(left_s * 1e3)):
                n_answered = results.next()["n_slices"]
        n_late += n_answered < index + 1
    controller.send_multipart(sender.end("s", N))
    final = results.until(state="complete")
    assert (final["n_slices"], final["n_lost"], final["n_missing"]) == (N, 0, 0)
    return n_late


def test_of_ten_slices_a_second_all_are_labelled_and_each_is_embedded_once(daemon):
    play(daemon)
    assert daemon.ask({"htype": "get_health"})["n_cnn_runs"] == N


@pytest.mark.slow
def test_ten_slices_a_second_leave_nothing_waiting(daemon):
    """On a machine with nothing else to do; one late answer is a hiccup."""
    assert play(daemon) <= 1


def hear_sigint():
    """Be as in a terminal: a shell has what it starts in the background ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def microscope(*words):
    command = [sys.executable, "-m", "rcm_daemon", "simulate", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_sigint)


def test_simulated_phantoms_and_a_recorded_stack_arrive_whole(daemon, tmp_path):
    results = daemon.subscribe()
    small = ["--size", "64", "--fps", "200", "--pixel-size-um", "1", "--z-step-um", "5"]
    process = microscope("phantom", "--bind", daemon.slices, "--stacks", "2", "--seed", "3", *small)
    for seed in (3, 4):
        phantom = make_phantom(seed, shape=(64, 64), pixel_size_um=1.0, z_step_um=5.0)
        final = results.until(state="complete", stack_id=f"phantom-{seed}")
        assert final["z_um"] == pytest.approx(phantom.z_um.tolist())
        assert (final["n_lost"], final["n_rejected"], final["instrument"]) == (0, 0, "microscope")
    assert process.communicate(timeout=30)[1].count("slices sent") == 2
    folder = tmp_path / "recorded"
    folder.mkdir()
    import cv2

    for index in range(5):
        cv2.imwrite(str(folder / f"{index}.png"), phantom.render(index))
    scale = ["--z-step-um", "2", "--pixel-size-um", "1"]
    process = microscope(str(folder), "--bind", daemon.slices, "--fps", "200", *scale)
    assert results.until(state="complete", stack_id="recorded")["z_um"] == [0, 2, 4, 6, 8]
    assert process.communicate(timeout=30)[0] is None


def test_watch_shows_what_comes_until_interrupted(daemon):
    controller, sender, early = daemon.controller(), Sender(), daemon.subscribe()
    controller.send_multipart(sender.start("visible stack", 3))
    early.next()
    process = subprocess.Popen(
        [sys.executable, "-m", "rcm_daemon", "watch", daemon.results],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_sigint,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("m1 visible stack open 0 slices; ")
    controller.send_multipart(sender.slice("visible stack", 0))
    assert process.stdout.readline().startswith("m1 visible stack open 1 slices; ")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_MS / 1e3) == 130
    process.stdout.close()


def test_simulate_refuses_a_port_in_use(daemon):
    process = microscope("phantom", "--bind", daemon.results)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 78
    assert len(complaint.splitlines()) == 1


def test_watch_refuses_no_endpoint():
    command = [sys.executable, "-m", "rcm_daemon", "watch", "somewhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr == "rcm-daemon: an endpoint reads tcp://HOST:PORT or ipc://PATH, got 'somewhere'\n"


def test_simulate_waits_for_a_listener_and_plays_at_the_rate():
    """With nobody there nothing is played; SIGINT ends it without a traceback."""
    process = microscope("phantom", "--bind", free_endpoint(), "--size", "64")
    assert process.stderr is not None
    assert "once somebody listens" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "sent" not in rest


def test_a_microscope_that_follows_the_advice_needs_fewer_slices(daemon):
    results = daemon.subscribe()
    words = ["phantom", "--bind", daemon.slices, "--seed", "6", "--size", "500", "--pixel-size-um", "1"]
    process = microscope(*words, "--follow-advice", "--results", daemon.results)
    phantom = make_phantom(6, shape=(500, 500), pixel_size_um=1.0)
    final = results.until(state="complete", stack_id="phantom-6")
    assert process.wait(60) == 0
    assert "in the full sweep" in process.stderr.read()
    process.stderr.close()
    assert final["n_slices"] < len(phantom)
    assert final["n_missing"] == final["n_lost"] == 0
    assert final["epidermis_dej_found"]
    assert final["dej_dermis_found"]


def test_advice_is_for_phantoms_alone():
    process = microscope("stack.tif", "--follow-advice")
    assert process.wait(60) == 78
    assert "a phantom, no recorded stack" in process.stderr.read()
    process.stderr.close()
