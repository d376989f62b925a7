"""Asking a running daemon over its control socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon.errors import ConfigurationError, RcmError

if TYPE_CHECKING:
    from rcm_daemon.io.curve import Curve


class NoAnswerError(RcmError):
    """The daemon did not answer, or refused what was asked."""


def ask(
    endpoint: str, request: dict[str, Any], patience_s: float, curve: Curve | None = None
) -> dict[str, Any]:
    """Send one request and return its answer.

    Raises
    ------
    ConfigurationError
        The endpoint is none.
    NoAnswerError
        No answer came in time, or it was a refusal.
    """
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        if curve is not None:
            curve.secure(socket)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ConfigurationError([f"{endpoint} cannot be connected to: {error.strerror}"]) from error
        socket.send(json.dumps(request).encode())
        if not socket.poll(round(patience_s * 1e3)):
            raise NoAnswerError(f"a daemon must answer at {endpoint} within {patience_s:g} s, got nothing")
        answer: dict[str, Any] = json.loads(socket.recv())
    if answer["htype"] == "error":
        raise NoAnswerError(answer["error"])
    return answer
