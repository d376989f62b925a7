"""Fixtures of the system tests: a tiny bundle, a daemon on it, and no daemon that outlives its test."""

from __future__ import annotations

import pytest
from harness import Daemon
from tiny_bundle import write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder, kind="whole", version="1.0.0")
    return folder


@pytest.fixture(autouse=True)
def none_outlives_its_test():
    """A test that fails leaves its daemon behind: ended here, it does not fail the next test too."""
    yield
    while Daemon.running:
        Daemon.running[0].kill()


@pytest.fixture
def daemon(tmp_path, bundle, none_outlives_its_test):
    daemon = Daemon(tmp_path, bundle)
    yield daemon
    assert daemon.stop() == 0
