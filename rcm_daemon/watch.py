"""A live view of a running daemon in the terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import zmq
from rich.console import Group
from rich.live import Live
from rich.text import Text

from rcm_daemon.core.message import STRATA_SCHEMA
from rcm_daemon.display.message_view import view_of_fields
from rcm_daemon.display.stack_view import boundary_sentence
from rcm_daemon.display.table import stack_report
from rcm_daemon.errors import ConfigurationError, RcmError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from rcm_daemon.io.curve import CurveClient

POLL_MS = 250


class NotResultsError(RcmError):
    """What an endpoint publishes is not a daemon's results."""


def subscribe(endpoint: str, topic: str = "strata.", curve: CurveClient | None = None) -> zmq.Socket[bytes]:
    """Connect to a daemon's results.

    Raises
    ------
    ConfigurationError
        When the endpoint is none.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket = context.socket(zmq.SUB)
    socket.subscribe(topic)
    if curve is not None:
        curve.secure(socket)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise ConfigurationError([f"{endpoint} cannot be connected to: {error.strerror}"]) from error
    return socket


def results(socket: zmq.Socket[bytes]) -> Iterator[dict[str, Any] | None]:
    """Yield messages as they come, None while there are none."""
    while True:
        if not socket.poll(POLL_MS):
            yield None
            continue
        frames = socket.recv_multipart()
        try:
            fields = json.loads(frames[-1])
            known = fields["schema"] == STRATA_SCHEMA
        except (ValueError, TypeError, KeyError):
            known = False
        if not known:
            raise NotResultsError(f"results are {STRATA_SCHEMA} messages, what came is not")
        yield fields


def plain_line(fields: dict[str, Any]) -> str:
    """Say one message on one line."""
    view = view_of_fields(fields)
    where = "; ".join(boundary_sentence(view, which) for which in (0, 1))
    return (
        f"{fields['instrument']} {fields['stack_id']} {fields['state']} {fields['n_slices']} slices; {where}"
    )


def live_view(fields: dict[str, Any], n_rows: int = 12) -> RenderableType:
    """Show one message: its newest rows, boundaries, and what the daemon measured."""
    notes = (
        f"{fields['instrument']}  {fields['state']}  {fields['n_slices']} slices  "
        f"{fields['n_missing']} missing  {fields['n_rejected']} rejected  {fields['n_lost']} messages lost"
    )
    if fields["total_ms"]:
        notes += f"  newest after {fields['total_ms']:.1f} ms"
    return Group(stack_report(view_of_fields(fields), n_rows=n_rows), Text(notes, style="dim"))


def watch_results(endpoint: str, curve: CurveClient | None = None) -> None:
    """Show every instrument's newest stack until interrupted; a line a message where there is no terminal."""
    newest: dict[str, dict[str, Any]] = {}
    socket = subscribe(endpoint, curve=curve)
    waiting = f"waiting for results at {endpoint}"
    if not sys.stdout.isatty():
        print(waiting, file=sys.stderr, flush=True)
        with socket:
            for fields in results(socket):
                if fields is not None:
                    print(plain_line(fields), flush=True)
        return
    with socket, Live(Text(waiting), refresh_per_second=10) as live:
        for fields in results(socket):
            if fields is None:
                continue
            newest[fields["instrument"]] = fields
            live.update(Group(*(live_view(shown) for shown in newest.values())))
