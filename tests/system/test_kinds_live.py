"""One exported bundle of each kind over real sockets: served live, or refused in one sentence."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from harness import Daemon
from seeded_bundles import write_seeded_bundle
from sender import Sender, picture

from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

FIELD = (1000, 1000)
N = 5


@pytest.mark.parametrize(
    ("method", "kind"), [("toeplitz-1", "whole"), ("partial-bigru", "partial"), ("inception-v3", "single")]
)
def test_a_kind_that_is_served_live_says_of_every_prefix_what_it_says_offline(
    tmp_path: Path, method: str, kind: str
) -> None:
    bundle = write_seeded_bundle(tmp_path, method)
    networks = Networks.open(load_verified(bundle), "cpu", 1)
    assert networks.manifest.kind == kind
    images = [picture(index, FIELD) // (index + 1) for index in range(N)]
    embeddings = networks.embed_many(np.stack(images))
    daemon = Daemon(tmp_path, bundle)
    try:
        results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
        controller.send_multipart(sender.start("s", N, FIELD))
        for n, image in enumerate(images, start=1):
            controller.send_multipart(sender.slice("s", n - 1, image))
            message = results.until(n_slices=n)
            expected = networks.label(embeddings[:n], np.arange(n) * 3.0, np.ones(n))
            np.testing.assert_allclose(message["probability"], expected, atol=1e-5)
        controller.send_multipart(sender.end("s", N))
        final = results.until(state="complete")
        assert (final["n_slices"], final["n_rejected"], final["n_missing"]) == (N, 0, 0)
    finally:
        code = daemon.stop()
    assert code == 0


def test_a_context_bundle_is_refused_live_in_one_sentence(tmp_path: Path) -> None:
    bundle = write_seeded_bundle(tmp_path, "iv3-context")
    command = [sys.executable, "-m", "rcm_daemon", "serve", "--bundle", str(bundle)]
    command += ["--state-dir", str(tmp_path / "state")]
    for name in ("--results-bind", "--control-bind"):
        command += [name, f"ipc://{tmp_path}/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == BundleError.exit_code
    (complaint,) = (line for line in done.stderr.splitlines() if line.startswith("rcm-daemon: "))
    assert "iv3-context needs both: label recorded stacks with rcm-daemon replay" in complaint
    assert "Traceback" not in done.stderr
