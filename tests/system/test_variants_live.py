"""A daemon says which form of the CNN it runs, and never mixes two of them in one stack."""

from __future__ import annotations

import os
import signal

import pytest
from harness import Daemon
from sender import Sender, picture
from tiny_bundle import FIELD, add_int8, write_bundle

from rcm_daemon.bundle.manifest import bundle_digest, variant_digest


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle", kind="whole")
    add_int8(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_stack_goes_on_with_the_variant_it_began_with(tmp_path, bundle):
    fp32 = bundle_digest((bundle / "manifest.json").read_bytes())
    int8 = variant_digest(fp32, "int8")
    daemon = Daemon(tmp_path, bundle, "--variant", "int8")
    health = daemon.ask({"htype": "get_health"})
    assert (health["variant"], health["variant_reason"], health["bundle_digest"]) == ("int8", "as set", int8)
    assert "variant=int8" in daemon.log.read_text()
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    controller.send_multipart(sender.slice("a", 0, picture(0, FIELD)))
    assert results.until(n_slices=1)["bundle_digest"] == int8
    while daemon.ask({"htype": "get_health"})["n_unwritten"]:
        pass  # what is not in the journal yet, a power cut takes with it
    daemon.kill()

    daemon = Daemon(tmp_path, bundle, "--variant", "fp32")
    assert daemon.ask({"htype": "get_health"})["bundle_digest"] == fp32
    results, controller = daemon.subscribe(), daemon.controller()
    controller.send_multipart(sender.slice("a", 1, picture(1, FIELD)))
    message = results.until(stack_id="a", n_slices=2)
    assert message["bundle_digest"] == int8
    for frames in (sender.end("a", 2), sender.slice("b", 0, picture(0, FIELD))):
        controller.send_multipart(frames)
    assert results.until(stack_id="a", state="complete")["bundle_digest"] == int8
    assert results.until(stack_id="b", n_slices=1)["bundle_digest"] == fp32
    assert daemon.stop() == 0


def test_a_worker_that_dies_is_followed_by_one_of_the_same_variant(tmp_path, bundle):
    daemon = Daemon(tmp_path, bundle)  # auto: whatever was faster here
    before = daemon.ask({"htype": "get_health"})
    assert before["variant"] in ("fp32", "int8")
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    controller.send_multipart(sender.slice("a", 0, picture(0, FIELD)))
    first = results.until(n_slices=1)
    os.kill(before["worker_pid"], signal.SIGKILL)
    controller.send_multipart(sender.slice("a", 1, picture(1, FIELD)))
    assert results.until(n_slices=2)["bundle_digest"] == first["bundle_digest"]
    after = daemon.ask({"htype": "get_health"})
    assert after["worker_pid"] != before["worker_pid"]
    assert (after["variant"], after["variant_reason"]) == (before["variant"], before["variant_reason"])
    assert daemon.stop() == 0


def test_a_variant_the_bundle_lacks_is_refused_at_the_start(tmp_path, bundle):
    daemon = Daemon(tmp_path, bundle, "--variant", "fp16", await_ready=False)
    assert daemon.process.wait(100) == 1
    assert "bundle tiny must hold a variant to run it, got fp16" in daemon.log.read_text()
