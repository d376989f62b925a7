"""docs/install.md, step by step, on a copy of this machine's folders that is thrown away afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from harness import free_endpoint
from unit_file import ROOT, Manager, directives

BASE = Path(os.environ.get("BASE_PYTHON") or sys.executable).parent.parent

# /etc, /opt and /var are overlaid in a mount namespace of its own; systemctl only notes what it was asked.
STAGE = """
    set -eu
    mount -t tmpfs none "$SCRATCH/layers"
    for folder in etc opt var; do
        mkdir -p "$SCRATCH/layers/$folder/upper" "$SCRATCH/layers/$folder/work"
        options="lowerdir=/$folder,upperdir=$SCRATCH/layers/$folder/upper,workdir=$SCRATCH/layers/$folder/work"
        mount -t overlay overlay -o "$options" "/$folder"
    done
    ln -s "$BASE" /opt/rcm-daemon.program
    mkdir -p /opt/rcm-daemon /etc/sysusers.d /etc/tmpfiles.d /etc/systemd/system
    ln -s /opt/rcm-daemon.program/bin /opt/rcm-daemon/bin
    . "$SCRATCH/steps.sh"
    systemd-analyze verify --man=no /etc/systemd/system/rcm-daemon.service > "$SCRATCH/verified" 2>&1
    getent passwd rcm-daemon > "$SCRATCH/account"
    stat -c '%a %U %n' /etc/rcm-daemon/keys/* > "$SCRATCH/keys"
    exec "$SCRATCH/serve.sh"
"""


def steps() -> str:
    """Return all commands of the guide but those that fetch and install the program."""
    guide = (ROOT / "docs/install.md").read_text()
    guide = re.sub(r"<!-- program -->\n```bash\n.*?```", "", guide, flags=re.DOTALL)
    return "\n".join(re.findall(r"```bash\n(.*?)```", guide, re.DOTALL))


def write_program(path: Path, text: str) -> None:
    path.write_text(textwrap.dedent(text))
    path.chmod(0o755)


@pytest.mark.timeout(300)
def test_the_steps_of_the_guide_lead_to_a_daemon_that_serves(tmp_path):
    (tmp_path / "layers").mkdir()
    (tmp_path / "stubs").mkdir()
    (tmp_path / "credentials").mkdir()
    write_program(tmp_path / "stubs/systemctl", '#!/bin/sh\necho "$@" >> "$SCRATCH/asked"\n')
    (tmp_path / "steps.sh").write_text(steps())
    # What systemd does with the unit: environment file, credential, folders; endpoints this machine has.
    write_program(
        tmp_path / "serve.sh",
        f"""\
        #!/bin/bash
        set -eu
        set -a; . /etc/rcm-daemon/environment; set +a
        unset RCM_KEYS_DIR
        cp /etc/rcm-daemon/keys/daemon.secret "$SCRATCH/credentials/"
        export CREDENTIALS_DIRECTORY="$SCRATCH/credentials" CONFIGURATION_DIRECTORY=/etc/rcm-daemon
        export STATE_DIRECTORY="$SCRATCH/state" RCM_ENCRYPT=always RCM_SLICES_CONNECT={free_endpoint()}
        export RCM_RESULTS_BIND={free_endpoint()} RCM_CONTROL_BIND={free_endpoint()}
        exec {directives()["ExecStart"][0]}
        """,
    )
    write_program(tmp_path / "stage.sh", STAGE)
    manager = Manager(tmp_path / "notify")
    environment = {
        "PATH": f"{tmp_path / 'stubs'}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "HOME": str(tmp_path),
        "SCRATCH": str(tmp_path),
        "BASE": str(BASE),
        "NOTIFY_SOCKET": str(manager.path),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "bash", str(tmp_path / "stage.sh")],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        manager.socket.settimeout(120)
        said = manager.until("READY=1")
    except TimeoutError:
        raise AssertionError((tmp_path / "log").read_text()) from None
    finally:
        process.terminate()
        code = process.wait(60)
        manager.socket.close()
    assert said
    assert code == 0
    assert (tmp_path / "verified").read_text() == ""
    assert (tmp_path / "account").read_text().endswith(":/var/lib/rcm-daemon:/usr/sbin/nologin\n")
    listed = [line.split() for line in (tmp_path / "keys").read_text().splitlines()]
    modes = {Path(path).name: [mode, owner] for mode, owner, path in listed}
    assert modes["daemon.secret"] == ["600", "root"]
    assert modes["allowed.json"] == ["644", "root"]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "enable --now rcm-daemon.service" in asked
    assert "ready" in (tmp_path / "log").read_text()
    assert not Path("/etc/rcm-daemon").exists()
