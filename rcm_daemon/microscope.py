"""`rcm-daemon simulate`: recorded stacks or phantoms, sent as a microscope would."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import zmq

from rcm_daemon.client import Client, NotAcknowledgedError
from rcm_daemon.core.admission import origin_of
from rcm_daemon.core.controller import StackPlan
from rcm_daemon.core.pseudonyms import is_pseudonym
from rcm_daemon.core.records import Heartbeat
from rcm_daemon.core.wire import encode
from rcm_daemon.errors import ConfigurationError, RcmError
from rcm_daemon.io.authenticator import Authenticator
from rcm_daemon.io.curve import CurveServer, client_of, demand_curve
from rcm_daemon.io.keys import load_key_pair
from rcm_daemon.readers import open_stack
from rcm_daemon.simulator import make_phantom
from rcm_daemon.simulator.player import Player
from rcm_daemon.simulator.publisher import Publisher
from rcm_daemon.watch import results, subscribe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rcm_daemon.core.records import Message
    from rcm_daemon.simulator import Phantom


ADVICE_PATIENCE_S = 30.0
REFUSAL_S = 0.2
"""While nobody listens, whether somebody was refused is looked up this often."""


@dataclass(frozen=True)
class Place:
    """Where and as which instrument the microscope sends.

    It publishes on `endpoint`, or, where `acknowledged`, sends to the daemon there, which answers. With a
    `key`, the name of a key pair in `keys_dir`, the connection is encrypted: publishing, only daemons on
    the allow-list there may listen; acknowledged, the daemon must have the key `server_key`.public.
    """

    endpoint: str
    instrument: str
    keys_dir: Path
    key: str | None = None
    acknowledged: bool = False
    server_key: str = "daemon"

    def check(self, *others: str, allow_unencrypted_remote: bool) -> None:
        """Refuse to talk where others can listen and nothing is encrypted, unless that is wanted."""
        for endpoint in (self.endpoint, *others):
            demand_curve(
                endpoint, locked=self.key is not None, allow_unencrypted_remote=allow_unencrypted_remote
            )


def phantom_plan(phantom: Phantom) -> StackPlan:
    """Describe a phantom as the microscope would announce it."""
    return StackPlan(
        phantom.stack_id,
        tuple(float(z) for z in phantom.z_um),
        phantom.shape,
        "uint8",
        0,
        phantom.pixel_size_um,
    )


def simulate_phantoms(
    place: Place,
    fps: float,
    n_stacks: int,
    seed: int,
    side_px: int,
    pixel_size_um: float,
    z_step_um: float | None,
    results_at: str | None = None,
) -> None:
    """Publish phantoms with seeds `seed`, `seed + 1`, ... once somebody listens.

    With `results_at`, an endpoint of the daemon's, each next slice is taken where the last answer advises.

    Raises
    ------
    ConfigurationError
        No such instrument, endpoint or phantom.
    """
    with ExitStack() as stack:
        answers = None
        if results_at is not None:
            curve = client_of(place.keys_dir, place.key, place.server_key) if place.key is not None else None
            answers = stack.enter_context(subscribe(results_at, f"strata.{place.instrument}.", curve))
        player = stack.enter_context(_player(place))
        for number in range(n_stacks):
            try:
                phantom = make_phantom(
                    seed + number, shape=(side_px, side_px), pixel_size_um=pixel_size_um, z_step_um=z_step_um
                )
            except ValueError as error:
                raise ConfigurationError([str(error)]) from error
            plan = phantom_plan(phantom)
            if answers is None:
                player.play(plan, phantom.render, fps)
                _say(f"{phantom.stack_id}: {len(phantom.z_um)} slices sent")
            else:
                advised = partial(_advice, answers, player.run_id, plan.stack_id)
                n_sent = player.follow(plan, phantom.render_at, advised, fps)
                _say(f"{phantom.stack_id}: {n_sent} slices sent, {len(phantom.z_um)} in the full sweep")


def simulate_recorded(
    path: Path,
    place: Place,
    fps: float,
    n_times: int,
    z_step_um: float | None,
    pixel_size_um: float | None,
    series: int | None,
    max_value: int | None,
) -> None:
    """Publish a recorded stack, `n_times` over, once somebody listens."""
    with open_stack(
        path, z_step_um=z_step_um, pixel_size_um=pixel_size_um, series=series, max_value=max_value
    ) as stack:
        plan = StackPlan(
            stack.stack_id, stack.z_um, stack.shape, stack.dtype, stack.max_value, stack.pixel_size_um
        )
        with _player(place) as player:
            for _ in range(n_times):
                player.play(plan, stack.read, fps)
                _say(f"{stack.stack_id}: {len(stack.z_um)} slices sent")


def _advice(answers: zmq.Socket[bytes], run_id: str, stack_id: str, n_sent: int) -> tuple[str, float]:
    """Wait for the answer to slice number `n_sent` of a stack; a daemon that gives no advice goes on.

    A stack of the same id that an earlier run left open is another one.
    """
    deadline_s = time.monotonic() + ADVICE_PATIENCE_S
    for fields in results(answers):
        if (
            fields is not None
            and (fields["run_id"], fields["stack_id"]) == (run_id, stack_id)
            and fields["n_slices"] + fields["n_rejected"] >= n_sent
        ):
            return fields["advice"], fields["advice_z_um"]
        if fields is not None and is_pseudonym(fields["run_id"]) and is_pseudonym(fields["stack_id"]):
            raise RcmError(
                f"results of this instrument must come as {stack_id}, one came as {fields['stack_id']}: a "
                "daemon with pseudonymise publishes them so, and its advice cannot be followed"
            )
        if time.monotonic() > deadline_s:
            raise RcmError(f"the daemon must answer every slice, no answer came to {n_sent} of {stack_id}")
    raise RcmError("the results ended")


@contextmanager
def _player(place: Place) -> Iterator[Player]:
    """Send to a place, once somebody listens; where it is acknowledged, until everything is."""
    if place.acknowledged:
        curve = client_of(place.keys_dir, place.key, place.server_key) if place.key is not None else None
        secure = curve.secure if curve is not None else None
        run_id = _new_run_id()
        try:
            with Client(
                place.endpoint,
                place.instrument,
                run_id,
                secure=secure,
                allow_unencrypted_remote=True,  # or `Place.check` would have refused
            ) as client:
                _say(f"sending to {place.endpoint} once it answers")
                yield Player(place.instrument, run_id, lambda message: _post(client, message))
            for refusal in client.refusals:
                _say(f"message {refusal.msg_number} {refusal.status}: {refusal.error}")
        except NotAcknowledgedError as error:
            raise RcmError(str(error)) from error
        except zmq.ZMQError as error:
            raise ConfigurationError(
                [f"{place.endpoint} cannot be connected to: {error.strerror}"]
            ) from error
        return
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context[zmq.Socket[bytes]]())
        lock = authenticator = None
        if place.key is not None:
            lock = CurveServer(load_key_pair(place.keys_dir, place.key)).secure
            authenticator = stack.enter_context(closing(Authenticator(context, place.keys_dir)))
        publisher = stack.enter_context(Publisher(context, place.endpoint, lock))
        player = Player(place.instrument, _new_run_id(), publisher.send)
        _say(f"publishing on {place.endpoint} once somebody listens")
        if authenticator is not None:
            _tell_who_is_refused(publisher, authenticator, place.keys_dir)
        publisher.wait_for_subscriber()
        yield player


def _tell_who_is_refused(publisher: Publisher, authenticator: Authenticator, keys_dir: Path) -> None:
    """Say once who may not listen; return then, or once somebody listens."""
    while not publisher.wait_for_subscriber(REFUSAL_S):
        address, key = authenticator.last_refused
        if address:
            _say(
                f"{address} with the key {key} may not listen, only keys allowed in {keys_dir} may: "
                "if it is the daemon's, rcm-daemon keys allow daemon lets it in"
            )
            return


def _post(client: Client, message: Message) -> None:
    if isinstance(message, Heartbeat):
        client.tell(encode(message))
    else:
        client.post(origin_of(message).msg_number, encode(message))


def _new_run_id() -> str:
    return f"{time.time_ns()}-{os.getpid()}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
