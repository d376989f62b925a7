"""The unit under a real systemd, installed as docs/install.md says: started, watched, restarted, stopped."""

from __future__ import annotations

import re
import sys

import pytest
from booted import Booted, why_not
from test_install_guide import BASE, steps
from unit_file import ROOT

UNIT = "rcm-daemon.service"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/test.conf"
# The program as the guide installs it, made of what is here: wherever that lies, the unit sees it under /opt.
INSTALL = f"""
set -eu
mkdir /opt/python /opt/packages /opt/source
mount --bind {sys.base_prefix} /opt/python
mount --bind {BASE} /opt/packages
mount --bind {ROOT} /opt/source
/opt/python/bin/python3 -m venv --without-pip /opt/rcm-daemon
cd /opt/rcm-daemon/lib/python3.*/site-packages
printf '%s\\n' /opt/source /opt/packages/lib/python3.*/site-packages > here.pth
sed '1s,.*,#!/opt/rcm-daemon/bin/python,' {BASE}/bin/rcm-daemon > /opt/rcm-daemon/bin/rcm-daemon
chmod 755 /opt/rcm-daemon/bin/rcm-daemon
"""

pytestmark = [
    pytest.mark.slow,  # it takes minutes, and a machine where namespaces and control groups are one's own
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_not()), reason=f"no systemd can be started here: {why_not()}"),
]
# Asks one thing on the control socket of the machine, and shows the answer.
ASK = """
import json, zmq
socket = zmq.Context().socket(zmq.REQ)
socket.connect("tcp://127.0.0.1:6782")
socket.send(b'{"htype": "get_health"}')
assert socket.poll(60_000)
print(json.dumps(json.loads(socket.recv())[KEY]))
"""


# Stores three slices, then sends frame after frame of one message until it is cut off.
BOMB = """
import json, sys, zmq
sys.path.insert(0, "/opt/source/tests")
from sender import Sender, picture
dealer, sender = zmq.Context().socket(zmq.DEALER), Sender()
dealer.linger, dealer.sndhwm = 0, 0
gone = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
dealer.connect("tcp://127.0.0.1:6783")
for frames in [sender.start("s", 9), *(sender.slice("s", i, picture(i)) for i in range(3))]:
    dealer.send_multipart(frames)
for _ in range(4):
    assert json.loads(dealer.recv())["status"] == "stored"
dealer.send_multipart([b"{}"] + [bytes(1 << 20)] * 1_000, copy=False)
assert gone.poll(60_000)
"""


def python(machine, program):
    return machine.run(f"/opt/rcm-daemon/bin/python - <<'END'\n{program}END").strip()


def health(machine, key):
    return python(machine, f"KEY = '{key}'\n{ASK}")


def until_health(machine, key, wanted):
    while health(machine, key) != wanted:
        pass


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    machine = Booted(tmp_path_factory.mktemp("machine") / "log")
    try:
        machine.run(f"{INSTALL}\nmkdir {DROP_IN.rpartition('/')[0]}")
        installed, others = steps().split("systemctl status rcm-daemon.service\n")
        machine.run(f"set -eu; cd {ROOT}\n{installed}")
        machine.others = f"set -eu; cd {ROOT}; export RCM_KEYS_DIR=/etc/rcm-daemon/keys\n{others}"
        yield machine
    finally:
        machine.close()


def test_it_starts_at_boot_and_says_how_it_is(machine):
    """Type=notify: `systemctl enable --now` of the guide returned only when READY=1 had come."""
    assert machine.show(UNIT, "ActiveState") == "active"
    assert machine.show(UNIT, "UnitFileState") == "enabled"
    machine.until(UNIT, StatusText="serving: 0 open stacks, 0 slices, 0 waiting, 0 rejected, 0 lost")
    pid = machine.show(UNIT, "MainPID")
    owner = machine.run(f"stat -c %U /proc/{pid}").strip()
    assert owner == "rcm-daemon"
    assert machine.run("stat -c '%a %U' /var/lib/rcm-daemon").split() == ["700", "rcm-daemon"]


def test_it_is_confined_as_the_unit_says(machine):
    pid = machine.show(UNIT, "MainPID")
    status = dict(re.findall(r"(\w+):\s+(.*)", machine.run(f"cat /proc/{pid}/status")))
    assert int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    limits = machine.run(f"cat /proc/{pid}/limits")
    assert re.search(r"Max open files\s+16384\s+16384", limits)
    assert re.search(r"Max core file size\s+0\s+0", limits)
    group = machine.show(UNIT, "ControlGroup")
    assert machine.run(f"cat /sys/fs/cgroup/memory{group}/memory.limit_in_bytes").strip() == str(8 << 30)
    devices = machine.run(f"cat /sys/fs/cgroup/devices{group}/devices.list")
    assert "a *:* rwm" not in devices
    assert machine.run(f"nsenter -t {pid} -m touch /etc/x /opt/x 2>&1", check=False).count("Read-only") == 2


def test_slices_are_served_and_what_it_logs_is_in_the_journal(machine):
    machine.run("/opt/rcm-daemon/bin/rcm-daemon simulate phantom --fps 50 --stacks 1 --seed 1 --z-step-um 20")
    until_health(machine, "n_waiting", "0")
    assert int(health(machine, "n_cnn_runs")) > 3
    assert health(machine, "n_lost") == "0"
    lines = machine.run(f"journalctl -u {UNIT} -o cat").splitlines()
    assert any(re.match(r"level=info msg=ready bundle=", line) for line in lines)
    assert not any("phantom-1" in line for line in lines)  # stack ids are not for logs


def test_settings_are_read_again_by_reload(machine):
    pid = machine.show(UNIT, "MainPID")
    machine.run("systemctl reload rcm-daemon.service")
    machine.until(UNIT, ActiveState="active", MainPID=pid)
    assert "the settings were read again" in machine.run(f"journalctl -u {UNIT} -o cat")


def test_killed_it_is_started_again(machine):
    n = int(machine.show(UNIT, "NRestarts"))
    machine.run(f"kill -KILL {machine.show(UNIT, 'MainPID')}")
    machine.until(UNIT, NRestarts=str(n + 1), ActiveState="active", SubState="running")
    assert health(machine, "ready") == "true"


def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_started_again(machine):
    assert machine.show(UNIT, "WatchdogUSec") == "30s"
    machine.run(f"printf '[Service]\\nWatchdogSec=3\\n' > {DROP_IN}; systemctl daemon-reload")
    machine.run("systemctl restart rcm-daemon.service")
    machine.until(UNIT, WatchdogUSec="3s", ActiveState="active")
    n = int(machine.show(UNIT, "NRestarts"))
    machine.run(f"kill -STOP {machine.show(UNIT, 'MainPID')}")
    machine.until(UNIT, NRestarts=str(n + 1), ActiveState="active")
    assert f"{UNIT}: Watchdog timeout" in machine.run(f"journalctl -u {UNIT} -o cat")
    machine.run(f"rm {DROP_IN}; systemctl daemon-reload")


@pytest.mark.hazard("H08")
def test_a_multipart_bomb_ends_at_the_memory_limit_and_nothing_acknowledged_is_lost(machine):
    machine.run("cp /etc/rcm-daemon/environment /tmp/kept")
    machine.run("echo RCM_INGEST_BIND=tcp://127.0.0.1:6783 >> /etc/rcm-daemon/environment")
    machine.run(f"printf '[Service]\\nMemoryMax=400M\\n' > {DROP_IN}; systemctl daemon-reload")
    machine.run("systemctl restart rcm-daemon.service")
    n = int(machine.show(UNIT, "NRestarts"))
    python(machine, BOMB)
    machine.until(UNIT, NRestarts=str(n + 1), ActiveState="active")
    listed = machine.run("/opt/rcm-daemon/bin/rcm-daemon stacks --state-dir /var/lib/rcm-daemon").splitlines()
    assert [line.split()[:5] for line in listed if line.startswith("m1")] == [["m1", "s", "1", "open", "3"]]
    machine.run(f"rm {DROP_IN}; systemctl daemon-reload")
    machine.run("cp /tmp/kept /etc/rcm-daemon/environment; systemctl restart rcm-daemon.service")


def test_it_is_stopped_in_good_order(machine):
    machine.run("systemctl stop rcm-daemon.service")
    machine.until(UNIT, ActiveState="inactive", Result="success", ExecMainStatus="0")
    assert machine.run(f"journalctl -u {UNIT} -o cat -n 5").count("msg=stopped") == 1


def test_faulty_settings_are_not_tried_again(machine):
    machine.run("cp /etc/rcm-daemon/environment /tmp/kept; echo RCM_NOTHING=1 >> /etc/rcm-daemon/environment")
    machine.run("systemctl start rcm-daemon.service", check=False)
    machine.until(UNIT, ActiveState="failed", ExecMainStatus="78", NRestarts="0")
    assert "RCM_NOTHING is no setting" in machine.run(f"journalctl -u {UNIT} -o cat")
    machine.run("cp /tmp/kept /etc/rcm-daemon/environment; systemctl start rcm-daemon.service")
    machine.until(UNIT, ActiveState="active")


def test_others_are_served_as_the_guide_says(machine):
    """Addresses of a network that is not loopback; the secret key is root's and comes as a credential."""
    machine.run("ip address add 10.0.0.2/24 dev lo")
    machine.run(machine.others)
    machine.until(UNIT, ActiveState="active", SubState="running")
    assert machine.run("stat -c '%a %U' /etc/rcm-daemon/keys/daemon.secret").split() == ["600", "root"]
    listening = machine.run("cat /proc/net/tcp")
    assert re.search(r"0200000A:1A7D", listening)  # 10.0.0.2:6781
    assert not re.search(r"0100007F:1A7D", listening)
    machine.run("systemctl stop rcm-daemon.service")
    machine.until(UNIT, ActiveState="inactive", Result="success")
