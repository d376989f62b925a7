"""The unit: hardened, without a slip, and its command does what Type=notify and WatchdogSec expect of it."""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from harness import PATIENCE_MS, free_endpoint
from sender import Sender, picture
from tiny_bundle import FIELD, write_bundle
from unit_file import SYSTEMD, UNIT, Manager, directives

from rcm_daemon.io.keys import new_key_pair
from rcm_daemon.settings import Settings

HERE = os.path.dirname(sys.executable)
CONFINED = str(Path(__file__).parent / "confined.py")


def run(*words):
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def unit(tmp_path):
    """Write the unit with its command where the daemon is installed here."""
    path = tmp_path / "rcm-daemon.service"
    path.write_text(UNIT.read_text().replace("/opt/rcm-daemon/bin", HERE))
    return path


def test_exposure_is_low(unit):
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(unit))
    assert done.returncode == 0, done.stdout
    level = re.search(r"Overall exposure level for rcm-daemon.service: ([0-9.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= 1.5


def test_nothing_is_misspelt(unit):
    done = run("systemd-analyze", "verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in run("systemd-analyze", "verify", "--man=no", str(unit)).stderr


def test_account_and_folders_are_made(tmp_path):
    (tmp_path / "etc").mkdir()
    for name, word in (("sysusers", "systemd-sysusers"), ("tmpfiles", "systemd-tmpfiles")):
        options = ["--create"] if name == "tmpfiles" else []
        done = run(word, f"--root={tmp_path}", *options, str(SYSTEMD / f"rcm-daemon.{name}"))
        assert done.returncode == 0, done.stderr
    assert "rcm-daemon:" in (tmp_path / "etc/passwd").read_text()
    assert (tmp_path / "etc/rcm-daemon/keys").stat().st_mode & 0o777 == 0o755


def test_the_environment_example_names_settings_only():
    names = re.findall(r"RCM_([A-Z_]+)=", (SYSTEMD / "environment.example").read_text())
    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


@pytest.mark.hazard("H08")
def test_limits_and_restarts():
    said = directives()
    assert said["Restart"] == ["on-failure"]
    assert said["RestartPreventExitStatus"] == ["78"]
    assert said["StartLimitIntervalSec"] == ["0"]
    assert said["MemoryMax"] == ["8G"]
    assert said["MemorySwapMax"] == ["0"]
    assert int(said["LimitNOFILE"][0]) >= 4096
    assert said["LimitCORE"] == ["0"]


class Started:
    """ExecStart under the unit's own environment and confinement, as far as no systemd is needed for it."""

    def __init__(self, folder):
        self.manager = Manager(folder / "notify")
        said = directives()
        command = shlex.split(said["ExecStart"][0])
        command[0] = command[0].replace("/opt/rcm-daemon/bin", HERE)
        config = folder / "etc/rcm-daemon.toml"
        command[command.index("/etc/rcm-daemon/rcm-daemon.toml")] = str(config)
        write_bundle_in = folder / "bundle"
        write_bundle_in.mkdir()
        write_bundle(write_bundle_in, kind="whole", version="1.0.0")
        new_key_pair(folder / "credentials", "daemon")
        config.parent.mkdir()
        config.write_text((SYSTEMD.parent / "rcm-daemon.toml").read_text())
        self.results, self.control, self.slices = (free_endpoint() for _ in range(3))
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/",
            "STATE_DIRECTORY": str(folder / "state"),
            "CONFIGURATION_DIRECTORY": str(folder / "etc"),
            "CREDENTIALS_DIRECTORY": str(folder / "credentials"),
            "NOTIFY_SOCKET": str(self.manager.path),
            "WATCHDOG_USEC": "30000000",
            "JOURNAL_STREAM": "8:1",
            "RCM_BUNDLE": str(write_bundle_in),
            "RCM_RESULTS_BIND": self.results,
            "RCM_CONTROL_BIND": self.control,
            "RCM_SLICES_CONNECT": self.slices,
        }
        n_files = int(said["LimitNOFILE"][0])
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, CONFINED, *command],
                env=environment,
                cwd="/",
                umask=int(said["UMask"][0], 8),
                stderr=log,
            )
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (n_files, n_files))
        resource.prlimit(self.process.pid, resource.RLIMIT_CORE, (0, 0))


@pytest.fixture
def started(tmp_path):
    started = Started(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()
    started.manager.socket.close()


def test_the_command_says_what_the_manager_waits_for(started, tmp_path):
    said = started.manager.until("READY=1")
    assert not any(state.startswith("WATCHDOG") for state in said)
    started.manager.until("STATUS=serving: 0 open stacks")
    for _ in range(2):
        started.manager.until("WATCHDOG=1")
    with zmq.Context() as context, context.socket(zmq.SUB) as results, context.socket(zmq.XPUB) as controller:
        results.linger = controller.linger = 0
        results.subscribe(b"")
        results.connect(started.results)
        controller.bind(started.slices)
        assert controller.poll(PATIENCE_MS)
        while not results.poll(100):  # the subscription may come later than the first
            controller.send_multipart(Sender().slice("s", 0, picture(0, FIELD)))
    started.process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in started.manager.until("RELOADING=1\n")[-1]
    started.manager.until("READY=1")
    started.process.send_signal(signal.SIGTERM)
    started.manager.until("STOPPING=1")
    assert started.process.wait(30) == 0
    lines = started.log.read_text().splitlines()
    assert all(re.match(r"<[0-7]>level=\w+ msg=", line) for line in lines), lines
    written = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert written
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)


@pytest.mark.hazard("H31")
def test_a_faulty_configuration_is_not_started_again(started, tmp_path):
    started.manager.until("READY=1")
    command = [f"{HERE}/rcm-daemon", "serve", "--state-dir", str(tmp_path / "other")]
    done = subprocess.run(
        [*command, "--results-bind", started.results, "--bundle", str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert str(done.returncode) in directives()["RestartPreventExitStatus"]
