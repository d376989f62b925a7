"""A machine for tests: a real systemd as process 1 of its own namespaces, on folders that are thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

SYSTEMD = Path("/usr/lib/systemd/systemd")
CGROUPS = Path("/sys/fs/cgroup")
PATIENCE_S = 60.0

# All is mounted in the machine's own namespace: /etc, /opt, /var are overlaid, /run and /tmp are new, the
# control groups are those below its own. Only the units named here are there. In the end mounts
# are shared within the machine, as systemd makes them when a real one starts: credentials come that way.
BOOT = """
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs none /run
mkdir -p /run/layers /run/units
mount -t tmpfs none /run/layers
for folder in etc opt var; do
    mkdir -p /run/layers/$folder/upper /run/layers/$folder/work
    options="lowerdir=/$folder,upperdir=/run/layers/$folder/upper,workdir=/run/layers/$folder/work"
    mount -t overlay overlay -o "$options" /$folder
done
mount -t tmpfs none /tmp
umount -R /sys/fs/cgroup
mount -t tmpfs none /sys/fs/cgroup
for group in $CONTROLLERS; do
    mkdir -p /sys/fs/cgroup/$group
    case $group in
        systemd) mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd ;;
        unified) mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
        *) mount -t cgroup -o $group cgroup /sys/fs/cgroup/$group ;;
    esac
done
ip link set lo up
mkdir -p /etc/sysusers.d /etc/tmpfiles.d /etc/systemd/system
for name in default sysinit basic shutdown umount multi-user network-online local-fs sockets; do
    printf '[Unit]\\nDefaultDependencies=no\\n' > /run/units/$name.target
done
printf 'Requires=systemd-journald.socket systemd-journald.service\\n' >> /run/units/sysinit.target
for unit in systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
    cp /usr/lib/systemd/system/$unit /run/units/
done
mount --make-rshared /
exec env -i container=test PATH=$PATH SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units \\
    $SYSTEMD --system --unit=multi-user.target --log-target=journal --show-status=false
"""


def why_not() -> str:
    """Say why no systemd can be started here; empty where it can."""
    if os.geteuid() != 0:
        return "only root can start a systemd"
    if not SYSTEMD.exists() or not shutil.which("nsenter") or not shutil.which("ip"):
        return "there is no systemd, nsenter or ip"
    if not (CGROUPS / "systemd").is_dir():
        return "control groups are not mounted by controller"
    if Path(__file__).is_relative_to("/tmp"):  # noqa: S108  # not written to
        return "the repository lies in /tmp, and a booted machine has a /tmp of its own"
    done = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "namespaces are not allowed"


class Booted:
    """A booted machine; `run` runs a command in it as root."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._name = f"rcm-test-{os.getpid()}"
        self._groups = [
            path for path in sorted(CGROUPS.iterdir()) if path.is_dir() and (path / "cgroup.procs").exists()
        ]
        for group in self._groups:
            own = group / self._name
            own.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if group.name == "cpuset":
                    (own / name).write_text((group / name).read_text())
        environment = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "CONTROLLERS": " ".join(group.name for group in self._groups if not group.is_symlink()),
            "SYSTEMD": str(SYSTEMD),
        }
        with log.open("wb") as file:
            self._outer = subprocess.Popen(
                [
                    "unshare",
                    *"--mount --pid --fork --uts --ipc --net --cgroup --kill-child bash -c".split(),
                    BOOT,
                ],
                env=environment,
                stdout=file,
                stderr=file,
                preexec_fn=self._enter,
            )
        self.pid = self._first_process()

    def _enter(self) -> None:
        for group in self._groups:
            (group / self._name / "cgroup.procs").write_text(str(os.getpid()))

    def _first_process(self) -> int:
        give_up_s = time.monotonic() + PATIENCE_S
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        while time.monotonic() < give_up_s and self._outer.poll() is None:
            for pid in children.read_text().split():
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return int(pid)
            time.sleep(0.02)  # it is not ours to be told when bash has become systemd
        raise AssertionError(self.log.read_text())

    def run(self, command: str, *, check: bool = True, **environment: str) -> str:
        """Run a shell command in the machine; returns what it wrote."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), *"-m -p -C -i -u -n bash -c".split(), command],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", **environment},
            cwd="/",
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """Return what systemd says a unit's property is."""
        return self.run(f"systemctl show -P {name} {unit}").strip()

    def until(self, unit: str, **wanted: str) -> None:
        """Wait until a unit's properties have these values."""
        give_up_s = time.monotonic() + PATIENCE_S
        while (found := {name: self.show(unit, name) for name in wanted}) != wanted:
            log = self.run(f"journalctl -u {unit} -o cat", check=False)
            assert time.monotonic() < give_up_s, (found, log[-2_000:], self.log.read_text()[-2_000:])
            time.sleep(0.1)

    def close(self) -> None:
        """Switch it off."""
        self._outer.kill()  # and with it process 1, and with that all others
        self._outer.wait()
        give_up_s = time.monotonic() + PATIENCE_S
        for group in self._groups:
            own = group / self._name
            while own.exists():
                for path in sorted((p for p in own.rglob("*") if p.is_dir()), reverse=True):
                    path.rmdir()
                try:
                    own.rmdir()
                except OSError:  # until the last process is reaped
                    assert time.monotonic() < give_up_s
                    time.sleep(0.02)
