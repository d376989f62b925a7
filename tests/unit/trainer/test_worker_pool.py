"""Worker processes end with the command they work for."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

COMMAND = """
import os, time
from trainer.worker_pool import worker_pool

if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_no_worker_behind(number: int, tmp_path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    command = subprocess.Popen([sys.executable, tmp_path / "command.py"], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    worker = os.pidfd_open(int(command.stdout.readline()))
    try:
        command.send_signal(number)
        assert command.wait(60) == -number
        assert select.select([worker], [], [], 60)[0], "the worker goes on"
    finally:
        os.close(worker)
        command.stdout.close()
