"""Control requests and their answers, which for the activation of a bundle come later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rcm_daemon.core.control import CONTROL_SCHEMA, ActivateBundle, GetHealth, GetState, ListBundles
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.bundles import Activation, Bundles
    from rcm_daemon.core.control import Request
    from rcm_daemon.io.control import Asker, ControlSocket
    from rcm_daemon.publishing import Publishing


class Questions:
    """Answers what is asked on the control socket; `health` gives the fields of that answer."""

    def __init__(
        self,
        control: ControlSocket,
        publishing: Publishing,
        bundles: Bundles,
        health: Callable[[], dict[str, Any]],
    ) -> None:
        self._control = control
        self._publishing = publishing
        self._bundles = bundles
        self._health = health

    def serve(self) -> None:
        """Read one request and answer it.

        Raises
        ------
        Rejection
            The asker's key has been revoked; it gets no answer.
        """
        if (asked := self._control.receive()) is not None:
            self._serve(*asked)

    def activated(self, activation: Activation) -> None:
        """Tell who asked that the bundle is active."""
        digest = self._bundles.active_digest
        self._answer(activation.asker, "activated", bundle=activation.name, bundle_digest=digest)

    def not_activated(self, activation: Activation, complaint: str) -> None:
        """Tell who asked why it is not."""
        self._control.refuse(activation.asker, complaint)

    def _serve(self, asker: Asker, request: Request) -> None:
        match request:
            case GetState():
                stacks = [m.model_dump(by_alias=True) for m in self._publishing.newest(request.stack_id)]
                self._answer(asker, "state", seq=self._publishing.seq, stacks=stacks)
            case GetHealth():
                self._answer(asker, "health", **self._health())
            case ListBundles():
                names, active = self._bundles.names(), self._bundles.active_name
                self._answer(asker, "bundles", bundles=names, active=active)
            case ActivateBundle():
                try:
                    self._bundles.begin_activation(request.bundle, asker)
                except BundleError as error:
                    self._control.refuse(asker, str(error))

    def _answer(self, asker: Asker, htype: str, **fields: Any) -> None:
        self._control.answer(asker, {"htype": htype, "schema": CONTROL_SCHEMA, **fields})
