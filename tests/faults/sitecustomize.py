"""On PYTHONPATH of a daemon under test, its workers fail over slices whose first pixel says so.

251 and 252 crash, 253 and 254 hang, 250 fails as a GPU does after a sticky error; the even ones only once,
which is noted in the folder FAULTS. Other processes are left alone. Where CLOCK is set, the wall clock of all
is moved (clock.py).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

CRASH, CRASH_ONCE, HANG, HANG_ONCE, STICKY_ONCE = 251, 252, 253, 254, 250

if "CLOCK" in os.environ:
    import clock  # noqa: F401

if "rcm_daemon.bundle.worker" in sys.orig_argv:
    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.errors import DeviceError

    plain_embed = Networks.embed

    def faulty_embed(self, image, name="this slice"):
        grey = int(image[0, 0])
        if grey >= STICKY_ONCE:
            noted = Path(os.environ["FAULTS"]) / str(grey)
            again = noted.exists()
            noted.touch()
            if grey == STICKY_ONCE and not again:
                self.provider = "cuda"
                raise DeviceError(f"the CNN must answer, but its run failed for {name}: CUDA failure 700")
            if grey == CRASH or (grey == CRASH_ONCE and not again):
                os.kill(os.getpid(), signal.SIGSEGV)
            if grey == HANG or (grey == HANG_ONCE and not again):
                signal.pause()
        return plain_embed(self, image, name)

    Networks.embed = faulty_embed
