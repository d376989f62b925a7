"""Last values for late joiners."""

from __future__ import annotations

import zmq

from rcm_daemon.io.results import ResultsSocket
from rcm_daemon.io.sockets import Context, bind_results


def test_older_acquisition_that_ends_late_does_not_hide_the_newer_one():
    context: Context = Context()
    with context, bind_results(context, "tcp://127.0.0.1:*") as socket, context.socket(zmq.SUB) as late:
        results = ResultsSocket(socket)
        for acquisition, keep in ((1, True), (2, True), (1, False)):
            results.publish(("m1", "s", acquisition), b"strata.m1.s", b"%d" % acquisition, keep=keep)
        late.linger = 0
        late.subscribe(b"strata.m1.")
        late.connect(socket.last_endpoint)
        assert socket.poll(10_000)
        results.serve_subscriptions()
        assert late.poll(10_000)
        assert late.recv_multipart() == [b"strata.m1.s", b"2"]
