"""How long the bundle commands wait for a daemon."""

from __future__ import annotations

import pytest

from rcm_daemon import bundle_cli
from rcm_daemon.io import asking
from rcm_daemon.io.asking import NoAnswerError


def test_that_nobody_is_there_is_found_out_before_a_bundle_would_be_opened(monkeypatch) -> None:
    waited_s = []

    def nobody(endpoint, request, patience_s, curve=None):
        waited_s.append(patience_s)
        raise NoAnswerError("got nothing")

    monkeypatch.setattr(asking, "ask", nobody)
    with pytest.raises(NoAnswerError):
        bundle_cli.activate("mine@1.0.0")
    assert waited_s == [10.0]
