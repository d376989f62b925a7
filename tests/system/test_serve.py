"""The daemon over loopback, driven by messages written by hand."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zmq
from faults.sitecustomize import HANG, HANG_ONCE
from harness import Daemon, free_endpoint
from sender import Sender, picture
from tiny_bundle import FIELD

from rcm_daemon import __version__
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified

FAULTS = str(Path(__file__).parents[1] / "faults")


def images(n):
    return [picture(i, FIELD) for i in range(n)]


def send(controller, *messages):
    for frames in messages:
        controller.send_multipart(frames)


def test_every_prefix_equals_the_offline_network_and_each_slice_is_embedded_once(daemon, bundle):
    networks = Networks.open(load_verified(bundle), "cpu")
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    stack = images(12)
    offline = networks.embed_many(np.stack(stack))
    z_um = np.arange(12) * 3.0
    send(controller, sender.start("s", 12, FIELD))
    assert results.next()["n_slices"] == 0
    order = [3, 0, 1, 2, 11, 4, 5, 6, 7, 10, 9, 8]
    seen = []
    for index in order:
        send(controller, sender.slice("s", index, stack[index]))
        message = results.next()
        seen = sorted([*seen, index])
        expected = networks.label(offline[seen], z_um[seen], np.ones(len(seen)))
        assert message["index"] == seen
        assert np.abs(np.array(message["probability"]) - expected).max() < 1e-5
        assert message["missing_index"] == sorted(set(range(max(seen))) - set(seen))
    send(controller, sender.end("s", 12))
    final = results.next()
    assert (final["state"], final["n_missing"], final["revision"]) == ("complete", 0, 14)
    health = daemon.ask({"htype": "get_health"})
    assert health["n_cnn_runs"] == 12
    assert (health["n_lost"], health["n_rejected"], health["n_slices"]) == (0, 0, 12)


def test_losses_and_refusals_are_reported_and_service_goes_on(daemon):
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    send(controller, [b"nonsense"], sender.start("s", 4, FIELD))
    results.next()
    send(controller, sender.slice("s", 0, picture(0, FIELD), crc32=1))
    assert results.next()["rejected_index"] == [0]
    sender.lose()
    send(controller, sender.slice("s", 2, picture(2, FIELD)))
    message = results.next()
    assert (message["n_lost"], message["missing_index"], message["n_rejected"]) == (1, [1], 1)
    assert message["rejected_reason"][0].startswith("R114 crc_mismatch")
    send(controller, sender.end("s", 4))
    final = results.next()
    assert (final["state"], final["missing_index"]) == ("incomplete", [1, 3])
    health = daemon.ask({"htype": "get_health"})
    assert health["rejected_rule"] == ["CRC_MISMATCH", "NOT_JSON"]
    assert health["n_lost"] == 1


def test_late_joiner_gets_the_newest_message_of_each_open_stack_and_nobody_else_is_skipped(daemon):
    early, controller = daemon.subscribe(), daemon.controller()
    one, two = Sender("m1"), Sender("m2")
    send(controller, one.start("a", 0, FIELD), two.start("b", 0, FIELD))
    send(controller, one.slice("a", 0, picture(0, FIELD)))
    newest = {m["instrument"]: m for m in [early.next(), early.next(), early.next()]}
    late = daemon.subscribe(b"strata.m1.")
    assert late.next()["seq"] == newest["m1"]["seq"]
    everything = daemon.subscribe(b"")
    assert {everything.next()["seq"], everything.next()["seq"]} == {m["seq"] for m in newest.values()}
    nothing = daemon.subscribe(b"strata.m3.")
    send(controller, one.slice("a", 1, picture(1, FIELD)))
    for subscriber in (early, late, everything):
        message = subscriber.until(n_slices=2)
        assert message["instrument"] == "m1"
    late.socket.close()
    send(controller, two.slice("b", 0, picture(1, FIELD)))
    for subscriber in (early, everything):
        assert subscriber.until(instrument="m2", n_slices=1)["stack_id"] == "b"
    assert not nothing.socket.poll(0)


def test_state_can_be_asked_for_open_and_ended_stacks(daemon):
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    send(
        controller,
        sender.start("old", 1, FIELD),
        sender.slice("old", 0, picture(0, FIELD)),
        sender.end("old", 1),
    )
    results.until(state="complete")
    send(controller, sender.start("new", 1, FIELD))
    newest = results.until(stack_id="new")
    answer = daemon.ask({"htype": "get_state", "stack_id": ""})
    assert (answer["htype"], answer["schema"], answer["seq"]) == ("state", "rcm-control-1", newest["seq"])
    assert [s["stack_id"] for s in answer["stacks"]] == ["new"]
    (old,) = daemon.ask({"htype": "get_state", "stack_id": "old"})["stacks"]
    assert (old["state"], old["n_slices"]) == ("complete", 1)
    assert daemon.ask({"htype": "get_state", "stack_id": "never"})["stacks"] == []


def test_every_result_says_what_made_it(daemon, bundle):
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    health = daemon.ask({"htype": "get_health"})
    send(
        controller,
        sender.start("s", 2, FIELD),
        sender.slice("s", 0, picture(0, FIELD)),
        sender.slice("s", 1, picture(1, FIELD), crc32=1),
        sender.end("s", 2),
    )
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    made_by = {
        "daemon_version": __version__,
        "bundle_name": "tiny",
        "bundle_digest": digest,
        "provider": "cpu",
    }
    assert health.items() >= made_by.items()
    message = {"state": "open"}
    while message["state"] == "open":
        message = results.next()
        assert message.items() >= made_by.items()


@pytest.mark.parametrize(
    "request_", [b"hello", b"[1]", b'{"htype": "dance"}', b"{}", b'{"htype": "get_state", "stack_id": 3}']
)
def test_other_requests_get_one_sentence(daemon, request_):
    answer = daemon.ask(request_)
    assert answer["htype"] == "error"
    assert answer["error"]


def test_control_serves_dealers_with_and_without_a_delimiter(daemon):
    with daemon.context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(daemon.control)
        dealer.send(b'{"htype": "get_health"}')
        assert json.loads(dealer.recv())["htype"] == "health"
        dealer.send_multipart([b"", b'{"htype": "list_bundles"}'])
        delimiter, answer = dealer.recv_multipart()
        assert (delimiter, json.loads(answer)["bundles"]) == (b"", ["tiny@1.0.0"])


def test_pull_and_pitch_resampling(tmp_path, bundle):
    daemon = Daemon(tmp_path, bundle, "--slices-socket", "pull")
    results, controller, sender = daemon.subscribe(), daemon.controller(zmq.PUSH), Sender()
    wide = picture(0, (FIELD[0] // 2, FIELD[1] // 2)).astype(np.uint16) * 16
    send(controller, sender.slice("s", 0, wide, pixel_size_um=1.0, max_value=4095))
    message = results.until(n_slices=1)
    assert message["stack_flags"] == "start_missing,pitch_resampled"
    assert message["flags"] == ["pitch_resampled"]
    assert daemon.stop() == 0


def five_in_hand(daemon, grey):
    """Send five slices, over the first of which the worker hangs, and SIGTERM while none is done."""
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    stack = images(5)
    stack[0][0, 0] = grey
    send(controller, *(sender.slice("s", i, image) for i, image in enumerate(stack)))
    while daemon.ask({"htype": "get_health"})["n_slices"] < 5:
        pass
    daemon.process.send_signal(signal.SIGTERM)
    return results


@pytest.mark.hazard("H28")
def test_sigterm_finishes_the_slices_in_hand(tmp_path, bundle):
    environment = {"RCM_SLICE_TIMEOUT_S": "3", "RCM_DRAIN_TIMEOUT_S": "60"}
    daemon = Daemon(tmp_path, bundle, PYTHONPATH=FAULTS, FAULTS=str(tmp_path), **environment)
    results = five_in_hand(daemon, HANG_ONCE)
    last = results.until(n_slices=5)
    assert (last["index"], last["n_lost"], last["n_rejected"]) == ([0, 1, 2, 3, 4], 0, 0)
    assert daemon.process.wait(60) == 0
    log = daemon.log.read_text()
    assert log.index("SIGTERM: finishing the slices in hand") < log.index("a new one takes over")
    assert "stopped" in log


@pytest.mark.hazard("H28")
def test_sigterm_waits_for_no_slice_that_never_gets_done(tmp_path, bundle):
    environment = {"RCM_SLICE_TIMEOUT_S": "600", "RCM_DRAIN_TIMEOUT_S": "1"}
    daemon = Daemon(tmp_path, bundle, PYTHONPATH=FAULTS, FAULTS=str(tmp_path), **environment)
    five_in_hand(daemon, HANG)
    assert daemon.process.wait(60) == 1
    assert "slices in hand were not finished in time" in daemon.log.read_text()


def test_seq_rises_over_restarts(tmp_path, bundle):
    last = -1
    for end_with in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        daemon = Daemon(tmp_path, bundle)
        results, controller = daemon.subscribe(), daemon.controller()
        send(controller, Sender().start("s", 0, FIELD))
        seq = results.next()["seq"]
        assert seq > last
        last = seq
        daemon.stop(end_with)


def run(*arguments, **environment):
    import os

    command = [sys.executable, "-m", "rcm_daemon", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )


@pytest.mark.hazard("H30")
def test_second_daemon_on_the_same_state_is_refused(daemon, tmp_path, bundle):
    result = run("serve", "--state-dir", str(tmp_path / "state"), "--bundle", str(bundle))
    assert result.returncode == 78
    assert "is held by another daemon" in result.stderr
    assert daemon.ask({"htype": "get_health"})["ready"]


@pytest.mark.hazard("H31")
def test_port_in_use(daemon, tmp_path, bundle):
    result = run(
        "serve", "--state-dir", str(tmp_path / "b"), "--bundle", str(bundle), "--results-bind", daemon.results
    )
    assert result.returncode == 78
    assert f"results cannot be bound to {daemon.results}: Address already in use" in result.stderr


@pytest.mark.hazard("H34")
def test_state_folder_that_cannot_be_written(tmp_path, bundle):
    (tmp_path / "file").write_text("")
    result = run("serve", "--state-dir", str(tmp_path / "file" / "state"), "--bundle", str(bundle))
    assert result.returncode == 78
    assert "cannot be written" in result.stderr


@pytest.mark.hazard("H64")
def test_all_faults_of_the_configuration_are_listed(tmp_path):
    config = tmp_path / "rcm.toml"
    config.write_text('idle_timeout = 5\nprovider = "tpu"\nresults_bind = "tcp://0.0.0.0:7000"\n')
    result = run("serve", "--config", str(config), "--control-bind", "nowhere", RCM_N_THREAD="2")
    assert result.returncode == 78
    lines = result.stderr.splitlines()
    assert all(line.startswith("rcm-daemon: ") for line in lines)
    for expected in ("idle_timeout_s?", "RCM_N_THREADS?", "provider: ", "control_bind: "):
        assert any(expected in line for line in lines), (expected, lines)


@pytest.mark.hazard("H64")
def test_remote_endpoint_without_encryption_is_refused(tmp_path, bundle):
    result = run(
        "serve", "--state-dir", str(tmp_path), "--bundle", str(bundle), "--results-bind", "tcp://*:6799"
    )
    assert result.returncode == 78
    assert "is not loopback" in result.stderr


def test_bad_bundle_is_refused(tmp_path):
    endpoints = ["--results-bind", free_endpoint(), "--control-bind", free_endpoint()]
    result = run("serve", "--state-dir", str(tmp_path), "--bundle", str(tmp_path), *endpoints)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "manifest.json" in result.stderr


def test_slice_of_an_ended_stack_is_refused_and_says_so(daemon):
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    send(controller, sender.slice("s", 0, picture(0, FIELD)), sender.end("s", 1))
    assert results.until(state="complete")["n_rejected"] == 0
    send(controller, sender.slice("s", 1, picture(1, FIELD)))
    late = results.next()
    assert (late["state"], late["n_slices"], late["rejected_index"]) == ("complete", 1, [1])
    assert late["rejected_reason"][0].startswith("R203 stack_ended")


def test_one_of_several_subscriptions_can_be_given_up(daemon):
    results, controller = daemon.subscribe(b""), daemon.controller()
    results.socket.subscribe(b"strata.")
    results.socket.unsubscribe(b"")
    assert daemon.ask({"htype": "get_health"})["ready"]
    send(controller, Sender("m1").start("a"))
    results.until(instrument="m1")
    send(controller, Sender("m2").start("b"))
    results.until(instrument="m2")


@pytest.mark.hazard("H28")
def test_sigterm_while_loading(tmp_path, bundle):
    endpoint = free_endpoint()
    command = [sys.executable, "-m", "rcm_daemon", "serve", "--state-dir", str(tmp_path / "state")]
    command += ["--results-bind", endpoint, "--control-bind", free_endpoint(), "--bundle", str(bundle)]
    process = subprocess.Popen(command)
    with zmq.Context() as context:
        with context.socket(zmq.SUB) as probe:
            probe.reconnect_ivl = 1
            monitor = probe.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            probe.connect(endpoint)
            assert monitor.poll(30_000)
            process.send_signal(signal.SIGTERM)
            probe.disable_monitor()
            monitor.close()
    assert process.wait(30) == 0


def test_slices_that_cannot_be_connected_to(tmp_path, bundle):
    options = ["--state-dir", str(tmp_path), "--bundle", str(bundle), "--slices-connect", "tcp://127.0.0.1:*"]
    options += ["--results-bind", free_endpoint(), "--control-bind", free_endpoint()]
    result = run("serve", *options)
    assert result.returncode == 78
    assert result.stderr == "rcm-daemon: slices cannot be connected to tcp://127.0.0.1:*: Invalid argument\n"


def test_simulate_refuses_a_name_that_is_none():
    result = run("simulate", "phantom", "--bind", free_endpoint(), "--instrument", "m 1")
    assert result.returncode == 78
    assert len(result.stderr.splitlines()) == 1
