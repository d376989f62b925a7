"""CURVE on a socket: as the server that lets keys in, or as the client that knows its server's key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.endpoint import check_endpoint, is_loopback
from rcm_daemon.io.keys import load_key_pair, load_public_key

if TYPE_CHECKING:
    from pathlib import Path

    from rcm_daemon.io.keys import KeyPair

ZAP_DOMAIN = b"rcm"


@dataclass(frozen=True)
class CurveServer:
    """Only keys that the authenticator of the socket's context lets in can connect."""

    own: KeyPair

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Set before the socket is bound. Without an authenticator everybody is refused."""
        socket.curve_server = True
        socket.curve_secretkey = self.own.secret
        socket.zap_domain = ZAP_DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


@dataclass(frozen=True)
class CurveClient:
    """Only a server that has the secret to this public key is talked to."""

    own: KeyPair
    server: bytes

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Set before the socket is connected."""
        socket.curve_publickey = self.own.public
        socket.curve_secretkey = self.own.secret
        socket.curve_serverkey = self.server


Curve = CurveServer | CurveClient


def client_of(keys_dir: Path, key: str, server_key: str) -> CurveClient:
    """Read the own key pair `key` and the server's `server_key`.public from a folder.

    Raises
    ------
    ConfigurationError
        One of them is not there or no key.
    """
    return CurveClient(load_key_pair(keys_dir, key), load_public_key(keys_dir, server_key))


def demand_curve(endpoint: str, *, locked: bool, allow_unencrypted_remote: bool) -> None:
    """Refuse an endpoint that others can reach and nothing encrypts, unless that is wanted.

    Raises
    ------
    ConfigurationError
        It is one, or no endpoint.
    """
    try:
        check_endpoint(endpoint)
    except ValueError as error:
        raise ConfigurationError([f"{error}, got '{endpoint}'"]) from error
    if not locked and not allow_unencrypted_remote and not is_loopback(endpoint):
        detail = f"{endpoint} is not loopback: give a --key, or say --allow-unencrypted-remote"
        raise ConfigurationError([detail])


def peer_key(socket: zmq.Socket[bytes], frame: zmq.Frame) -> bytes | None:
    """Return the authenticated public key a frame came with; None where the socket is not locked.

    A client's own claims (ZMTP metadata) cannot pass for it: libzmq keeps the authenticator's word.
    """
    if socket.getsockopt(zmq.MECHANISM) == zmq.NULL:
        return None
    try:
        return str(frame.get("User-Id")).encode()
    except zmq.ZMQError:
        return b""  # no key is empty: nobody


def nobody_locked_out(key: bytes | None) -> bool:
    """Allow everybody on a socket that is not locked, nobody on one that is."""
    return key is None
