"""Bundles changed while the daemon runs, and settings read again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import pytest
import zmq
from harness import PATIENCE_MS, Daemon
from sender import Sender, picture
from tiny_bundle import FIELD, cnn_bytes, write_bundle

from rcm_daemon.bundle.manifest import bundle_digest
from rcm_daemon.bundle.signature import new_signing_key
from rcm_daemon.bundle.verify import sign_bundle


@pytest.fixture
def folders(tmp_path):
    """A configured bundle, and a folder of others: a good one, and two that are bad in their own ways."""
    configured = tmp_path / "configured"
    write_bundle(configured, kind="whole", version="1.0.0")
    others = tmp_path / "bundles"
    others.mkdir()
    write_bundle(others / "good", kind="whole", version="2.0.0", cnn=cnn_bytes(bias=0.5))
    write_bundle(others / "flipped", kind="whole", version="3.0.0")
    data = bytearray((others / "flipped/cnn.onnx").read_bytes())
    data[-20] ^= 1
    (others / "flipped/cnn.onnx").write_bytes(data)
    write_bundle(others / "other-results", kind="whole", version="4.0.0")
    golden = others / "other-results/golden.npz"
    shutil.copy(others / "good/golden.npz", golden)
    for part in ("other-results",):
        from rcm_daemon.bundle.manifest import Manifest, write_manifest

        manifest = Manifest.load(others / part)
        write_manifest(
            others / part,
            name=manifest.name,
            version=manifest.version,
            kind="whole",
            field_shape=FIELD,
            pixel_size_um=0.5,
            z_step_um=(1.5, 5.0),
            rcn_inputs=manifest.rcn_inputs,
            provenance=manifest.provenance.model_dump(mode="json"),
        )
    return configured, others


def digest_of(folder):
    return bundle_digest((folder / "manifest.json").read_bytes())


def start(tmp_path, folders):
    return Daemon(tmp_path, folders[0], "--bundle-dir", str(folders[1]))


def activate(daemon, name):
    return daemon.ask({"htype": "activate_bundle", "bundle": name})


def command(daemon, *words):
    line = [sys.executable, "-m", "rcm_daemon", "bundle", *words, "--control", daemon.control]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def test_a_bundle_takes_effect_at_the_next_stack_and_every_result_names_its_own(tmp_path, folders):
    configured, others = folders
    daemon = start(tmp_path, folders)
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    old, new = digest_of(configured), digest_of(others / "good")
    listed = daemon.ask({"htype": "list_bundles"})
    assert listed["bundles"] == ["tiny@1.0.0", "tiny@2.0.0", "tiny@3.0.0", "tiny@4.0.0"]
    assert listed["active"] == "tiny@1.0.0"
    controller.send_multipart(sender.slice("a", 0, picture(0, FIELD)))
    assert results.until(n_slices=1)["bundle_digest"] == old
    answer = activate(daemon, "tiny@2.0.0")
    assert (answer["htype"], answer["bundle"], answer["bundle_digest"]) == ("activated", "tiny@2.0.0", new)
    controller.send_multipart(sender.slice("a", 1, picture(1, FIELD)))
    assert results.until(n_slices=2)["bundle_digest"] == old
    for frames in (sender.end("a", 2), sender.slice("b", 0, picture(0, FIELD))):
        controller.send_multipart(frames)
    assert results.until(stack_id="a", state="complete")["bundle_digest"] == old
    assert results.until(stack_id="b", n_slices=1)["bundle_digest"] == new
    assert daemon.ask({"htype": "get_health"})["bundle_digest"] == new
    assert daemon.stop() == 0


@pytest.mark.hazard("H45")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tiny@3.0.0", "another SHA-256 than listed"),
        ("tiny@4.0.0", "golden embeddings of bundle tiny differ here"),
        ("tiny@9.9.9", "a bundle to activate is one of tiny@1.0.0"),
        ("../configured", "a bundle to activate is one of"),
    ],
)
def test_a_bad_bundle_is_refused_mid_stack_and_the_old_one_goes_on(tmp_path, folders, name, reason):
    daemon = start(tmp_path, folders)
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    controller.send_multipart(sender.slice("a", 0, picture(0, FIELD)))
    results.until(n_slices=1)
    answer = activate(daemon, name)
    assert answer["htype"] == "error"
    assert reason in answer["error"]
    for index in (1, 2):
        controller.send_multipart(sender.slice("a", index, picture(index, FIELD)))
    last = results.until(n_slices=3)
    assert (last["bundle_digest"], last["n_lost"], last["n_rejected"]) == (digest_of(folders[0]), 0, 0)
    assert daemon.ask({"htype": "list_bundles"})["active"] == "tiny@1.0.0"
    assert daemon.stop() == 0


@pytest.mark.hazard("H44")
def test_where_bundles_must_be_signed_an_unsigned_one_is_not_activated(tmp_path, folders):
    configured, others = folders
    key = tmp_path / "signing"
    new_signing_key(key)
    sign_bundle(configured, key)
    daemon = Daemon(tmp_path, configured, "--bundle-dir", str(others), RCM_BUNDLE_PUBLIC_KEY=f"{key}.pub")
    answer = activate(daemon, "tiny@2.0.0")
    assert answer["htype"] == "error"
    assert "must be signed with the configured key" in answer["error"]
    assert daemon.ask({"htype": "list_bundles"})["active"] == "tiny@1.0.0"
    sign_bundle(others / "good", key)
    assert activate(daemon, "tiny@2.0.0")["htype"] == "activated"
    (tmp_path / "signing.pub").unlink()  # while keys are exchanged, say
    assert activate(daemon, "tiny@1.0.0")["htype"] == "error"
    assert daemon.ask({"htype": "list_bundles"})["active"] == "tiny@2.0.0"
    assert daemon.stop() == 0


@pytest.mark.hazard("H45")
def test_the_result_of_a_stack_whose_bundle_is_gone_stays_whatever_comes_for_it(tmp_path, folders):
    configured, _ = folders
    daemon = start(tmp_path, folders)
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    for index in range(3):
        controller.send_multipart(sender.slice("a", index, picture(index, FIELD)))
    controller.send_multipart(sender.end("a", 3))
    results.until(stack_id="a", state="complete", n_slices=3)
    assert daemon.stop() == 0
    write_bundle(configured, kind="whole", version="1.1.0", cnn=cnn_bytes(bias=0.7))
    daemon = start(tmp_path, folders)
    results, controller = daemon.subscribe(), daemon.controller()
    controller.send_multipart(sender.slice("a", 3, picture(3, FIELD)))  # refused: it has ended
    controller.send_multipart(sender.slice("b", 0, picture(0, FIELD)))
    results.until(stack_id="b", n_slices=1)
    (kept,) = daemon.ask({"htype": "get_state", "stack_id": "a"})["stacks"]
    assert (kept["state"], kept["n_slices"], len(kept["label"])) == ("complete", 3, 3)
    assert daemon.stop() == 0
    daemon = start(tmp_path, folders)
    (kept,) = daemon.ask({"htype": "get_state", "stack_id": "a"})["stacks"]
    assert (kept["state"], kept["n_slices"]) == ("complete", 3)
    assert daemon.stop() == 0


@pytest.mark.hazard("H45")
def test_a_slice_that_would_reopen_a_stack_whose_bundle_is_gone_is_refused_alone(tmp_path, folders):
    configured, _ = folders
    daemon = Daemon(tmp_path, configured, RCM_IDLE_TIMEOUT_S="1")
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    for index in range(3):
        controller.send_multipart(sender.slice("a", index, picture(index, FIELD)))
    results.until(stack_id="a", state="abandoned", n_slices=3)
    assert daemon.stop() == 0
    write_bundle(configured, kind="whole", version="1.1.0", cnn=cnn_bytes(bias=0.7))
    for repeated in (False, True, True):  # a slice that is new to it, one that it has, and once more
        daemon = Daemon(tmp_path, configured)
        results, controller = daemon.subscribe(), daemon.controller()
        index = 1 if repeated else 3
        controller.send_multipart(sender.slice("a", index, picture(index, FIELD)))
        controller.send_multipart(sender.heartbeat("a"))
        health = daemon.ask({"htype": "get_health"})
        while health["n_messages"] < 2 or health["n_unwritten"]:
            health = daemon.ask({"htype": "get_health"})
        refused = dict(zip(health["rejected_rule"], health["rejected_count"], strict=True))
        assert refused == ({} if repeated else {"BUNDLE_GONE": 1})
        daemon.kill()
    daemon = Daemon(tmp_path, configured)
    (kept,) = daemon.ask({"htype": "get_state", "stack_id": "a"})["stacks"]
    assert (kept["state"], kept["n_slices"]) == ("abandoned", 3)
    assert daemon.stop() == 0


def test_activation_from_the_command_line_outlives_a_restart(tmp_path, folders):
    configured, others = folders
    daemon = start(tmp_path, folders)
    done = command(daemon, "activate", "tiny@2.0.0")
    assert (done.returncode, done.stdout) == (0, f"tiny@2.0.0 {digest_of(others / 'good')}\n")
    refused = command(daemon, "activate", "tiny@3.0.0")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "* tiny@2.0.0\n" in command(daemon, "list").stdout
    assert daemon.stop() == 0
    daemon = start(tmp_path, folders)
    assert daemon.ask({"htype": "list_bundles"})["active"] == "tiny@2.0.0"
    daemon.kill()
    write_bundle(configured, kind="whole", version="1.1.0")  # configured anew: that is what is wanted now
    daemon = start(tmp_path, folders)
    assert daemon.ask({"htype": "list_bundles"})["active"] == "tiny@1.1.0"
    assert daemon.stop() == 0


@pytest.mark.hazard("H45")
def test_an_activated_bundle_that_goes_bad_is_not_served_at_the_next_start(tmp_path, folders):
    daemon = start(tmp_path, folders)
    activate(daemon, "tiny@2.0.0")
    assert daemon.stop() == 0
    (folders[1] / "good/cnn.onnx").write_bytes(b"")
    daemon = start(tmp_path, folders)
    assert daemon.ask({"htype": "list_bundles"})["active"] == "tiny@1.0.0"
    assert "the bundle activated last cannot be served" in daemon.log.read_text()
    assert daemon.stop() == 0


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_restored_stack_goes_on_with_its_own_bundle_or_ends(tmp_path, folders, is_gone):
    """Begun with one bundle, which is no longer the active one after the restart, and may be gone."""
    _, others = folders
    daemon = start(tmp_path, folders)
    activate(daemon, "tiny@2.0.0")
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    for index in range(2):
        controller.send_multipart(sender.slice("a", index, picture(index, FIELD)))
    first = results.until(n_slices=2)
    activate(daemon, "tiny@1.0.0")
    assert daemon.stop() == 0
    if is_gone:
        shutil.rmtree(others / "good")
    daemon = start(tmp_path, folders)
    (state,) = daemon.ask({"htype": "get_state", "stack_id": "a"})["stacks"]
    if is_gone:
        assert (state["state"], state["rejected_index"]) == ("abandoned", [0, 1])
        assert state["rejected_reason"][0].startswith("R305 bundle_gone")
        results, controller = daemon.subscribe(), daemon.controller()
        controller.send_multipart(sender.end("a", 2))
        ended = results.next()
        assert (ended["state"], ended["n_expected"], ended["rejected_index"]) == ("abandoned", 2, [0, 1])
    else:
        results, controller = daemon.subscribe(), daemon.controller()
        controller.send_multipart(sender.slice("a", 2, picture(2, FIELD)))
        message = results.until(n_slices=3)
        assert message["bundle_digest"] == first["bundle_digest"] == digest_of(others / "good")
    assert daemon.ask({"htype": "get_health"})["bundle_digest"] == digest_of(folders[0])
    assert daemon.stop() == 0


def test_two_activations_at_once_are_one(tmp_path, folders):
    daemon = start(tmp_path, folders)
    with daemon.context.socket(zmq.DEALER) as asker:
        asker.linger = 0
        asker.connect(daemon.control)
        for _ in range(2):
            asker.send(json.dumps({"htype": "activate_bundle", "bundle": "tiny@2.0.0"}).encode())
        answers = []
        for _ in range(2):
            assert asker.poll(PATIENCE_MS)
            answers.append(json.loads(asker.recv()))
    assert sorted(answer["htype"] for answer in answers) == ["activated", "error"]
    assert daemon.stop() == 0


@pytest.mark.hazard("H29")
def test_hangup_with_bad_settings_changes_nothing_and_is_reported(tmp_path, folders):
    config = tmp_path / "rcm.toml"
    config.write_text("idle_timeout_s = 50\nmax_instruments = 3\n")
    daemon = Daemon(tmp_path, folders[0], "--config", str(config))
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    controller.send_multipart(sender.slice("a", 0, picture(0, FIELD)))
    results.until(n_slices=1)
    config.write_text('idle_timeout_s = -1\nmax_instrument = 1\nlog_level = "loud"\n')
    daemon.process.send_signal(signal.SIGHUP)
    while not (fault := daemon.ask({"htype": "get_health"})["settings_fault"]):
        pass
    for expected in ("idle_timeout_s", "max_instruments?", "log_level"):
        assert expected in fault
    assert daemon.log.read_text().count("the settings stay as they were") == 3
    for name in ("m2", "m3"):
        controller.send_multipart(Sender(name).slice("a", 0, picture(0, FIELD)))
        results.until(instrument=name)
    config.write_text("max_instruments = 4\nprovider = 'auto'\ndrain_timeout_s = 9\n")
    daemon.process.send_signal(signal.SIGHUP)
    while daemon.ask({"htype": "get_health"})["settings_fault"]:
        pass
    controller.send_multipart(Sender("m4").slice("a", 0, picture(0, FIELD)))
    assert results.until(instrument="m4")["n_slices"] in (0, 1)
    controller.send_multipart(sender.slice("a", 1, picture(1, FIELD)))
    assert results.until(instrument="m1", n_slices=2)["n_lost"] == 0
    assert daemon.stop() == 0
