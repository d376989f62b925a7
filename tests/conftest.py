"""Fixtures of all tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from sender import Sender

# A busy machine is no fault of the code: no example is judged by its time.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def sender() -> Sender:
    return Sender()
