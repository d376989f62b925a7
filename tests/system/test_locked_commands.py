"""The commands with keys: what starts, what refuses to, and in which sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from harness import Daemon, Locks, free_endpoint

from rcm_daemon.bundle.signature import new_signing_key
from rcm_daemon.bundle.verify import sign_bundle
from rcm_daemon.io.allow_list import allow
from rcm_daemon.io.keys import load_public_key


@pytest.fixture
def locks(tmp_path):
    return Locks(tmp_path / "keys")


def rcm(*words, **environment):
    command = [sys.executable, "-m", "rcm_daemon", *words]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )


def serve(folder, bundle, **environment):
    options = ["--bundle", str(bundle), "--state-dir", str(folder / "state")]
    options += ["--results-bind", free_endpoint(), "--control-bind", free_endpoint()]
    return rcm("serve", *options, **environment)


def test_watch_and_simulate_with_keys(tmp_path, bundle, locks):
    daemon = Daemon(tmp_path, bundle, locks=locks)
    allow(
        locks.folder, "daemon", load_public_key(locks.folder, "daemon"), ""
    )  # the microscope lets it listen
    words = [sys.executable, "-m", "rcm_daemon"]
    keys = ["--keys-dir", str(locks.folder)]
    watch = subprocess.Popen(
        [*words, "watch", daemon.results, "--key", "viewer", *keys], stdout=subprocess.PIPE, text=True
    )
    try:
        simulate = [*words, "simulate", "phantom", "--bind", daemon.slices, "--size", "64", "--fps", "1000"]
        simulate += ["--pixel-size-um", "8", "--instrument", "m1", "--key", "vendor", *keys]
        while not daemon.ask({"htype": "get_health"})["n_slices"]:
            subprocess.run(simulate, check=True, stderr=subprocess.DEVNULL, timeout=60)
        assert watch.stdout is not None
        assert watch.stdout.readline().startswith("m1 phantom")
    finally:
        watch.kill()
        watch.communicate()
    assert daemon.stop() == 0


def test_a_microscope_says_who_is_refused_and_plays_once_it_is_allowed(tmp_path, bundle, locks):
    daemon = Daemon(tmp_path, bundle, locks=locks)
    words = [sys.executable, "-m", "rcm_daemon", "simulate", "phantom", "--bind", daemon.slices]
    words += ["--size", "64", "--pixel-size-um", "8", "--fps", "1000", "--instrument", "m1"]
    words += ["--key", "vendor", "--keys-dir", str(locks.folder)]
    public = load_public_key(locks.folder, "daemon")
    microscope = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert "once somebody listens" in microscope.stderr.readline()
        said = microscope.stderr.readline()
        assert said.startswith(
            f"127.0.0.1 with the key {public.decode()} may not listen, only keys allowed in"
        )
        assert "rcm-daemon keys allow daemon lets it in" in said
        while "connected anew" not in daemon.log.read_text():
            daemon.ask({"htype": "get_health"})
        allow(locks.folder, "daemon", public, "")
        assert "slices sent" in microscope.stderr.readline()
    finally:
        microscope.kill()
        microscope.communicate()
    log = daemon.log.read_text()
    (refused,) = (line for line in log.splitlines() if "key_refused" in line)
    assert 'msg="no connection to a controller"' in refused
    assert f"endpoint={daemon.slices}" in refused
    assert "connections refused" not in log
    assert daemon.stop() == 0


@pytest.mark.hazard("H64")
@pytest.mark.parametrize(
    "command",
    [
        ["watch", "tcp://192.0.2.1:6781"],
        ["simulate", "phantom", "--bind", "tcp://0.0.0.0:6780"],
        ["simulate", "phantom", "--transport", "dealer", "--connect", "tcp://192.0.2.1:6783"],
        ["simulate", "phantom", "--follow-advice", "--results", "tcp://192.0.2.1:6781"],
    ],
)
def test_watch_and_simulate_refuse_to_talk_in_the_clear_to_others(command):
    done = rcm(*command)
    assert done.returncode == 78
    assert "is not loopback: give a --key, or say --allow-unencrypted-remote" in done.stderr


@pytest.mark.hazard("H64")
@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("daemon.secret", None, "has no daemon.secret"),
        ("daemon.secret", "x", "must hold a key of 40 Z85 characters"),
        ("allowed.json", None, "no key vendor is allowed"),
        ("allowed.json", "{", "must be an allow-list"),
    ],
)
def test_a_daemon_that_cannot_lock_its_sockets_does_not_start(tmp_path, bundle, locks, name, damage, words):
    if damage is None:
        (locks.folder / name).unlink()
    else:
        (locks.folder / name).write_text(damage)
    done = serve(tmp_path, bundle, **locks.environment)
    assert done.returncode == 78, done.stderr
    assert words in done.stderr


@pytest.mark.hazard("H44")
def test_a_daemon_with_a_key_serves_signed_bundles_only(tmp_path, bundle):
    key = tmp_path / "signing"
    new_signing_key(key)
    mine = tmp_path / "mine"
    shutil.copytree(bundle, mine)
    done = serve(tmp_path, mine, RCM_BUNDLE_PUBLIC_KEY=f"{key}.pub")
    assert done.returncode == 1
    assert "must be signed with the configured key" in done.stderr
    sign_bundle(mine, key)
    daemon = Daemon(tmp_path, mine, RCM_BUNDLE_PUBLIC_KEY=f"{key}.pub")
    assert daemon.stop() == 0
