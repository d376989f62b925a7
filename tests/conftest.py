"""Fixtures of all tests."""

from __future__ import annotations

import pytest
from sender import Sender


@pytest.fixture
def sender() -> Sender:
    return Sender()
