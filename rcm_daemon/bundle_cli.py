"""`rcm-daemon bundle`: what is done to bundles besides checking them."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads annotations
from typing import Annotated, Any

import typer

from rcm_daemon.keys_cli import KeyOption, KeysDirOption, ServerKeyOption, UnencryptedOption, keys_folder

app = typer.Typer(help="Sign model bundles; list and activate those served.", no_args_is_help=True)

ControlOption = Annotated[str, typer.Option("--control", metavar="EP", help="The daemon's control socket.")]
DEFAULT_CONTROL = "tcp://127.0.0.1:6782"
ANSWER_S = 10.0
ACTIVATION_S = 130.0  # longer than a worker may take to open a bundle


def _ask(
    control: str,
    request: dict[str, Any],
    patience_s: float,
    key: str | None,
    server_key: str,
    keys_dir: Path | None,
    unencrypted: bool,
) -> dict[str, Any]:
    from rcm_daemon.io.asking import ask
    from rcm_daemon.io.curve import client_of, demand_curve

    curve = client_of(keys_folder(keys_dir), key, server_key) if key is not None else None
    demand_curve(control, locked=curve is not None, allow_unencrypted_remote=unencrypted)
    return ask(control, request, patience_s, curve)


@app.command("list")
def list_(
    control: ControlOption = DEFAULT_CONTROL,
    key: KeyOption = None,
    server_key: ServerKeyOption = "daemon",
    keys_dir: KeysDirOption = None,
    unencrypted: UnencryptedOption = False,
) -> None:
    """List the bundles a running daemon can activate; the active one is marked."""
    answer = _ask(control, {"htype": "list_bundles"}, ANSWER_S, key, server_key, keys_dir, unencrypted)
    for name in answer["bundles"]:
        print(f"{'*' if name == answer['active'] else ' '} {name}")


@app.command()
def activate(
    bundle: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="As `bundle list` names it.")],
    control: ControlOption = DEFAULT_CONTROL,
    key: KeyOption = None,
    server_key: ServerKeyOption = "daemon",
    keys_dir: KeysDirOption = None,
    unencrypted: UnencryptedOption = False,
) -> None:
    """Have stacks that open from now on labelled with another bundle; a bad one is refused."""
    request = {"htype": "activate_bundle", "bundle": bundle}
    # That nobody is there is found out first, long before a bundle would have been opened.
    _ask(control, {"htype": "get_health"}, ANSWER_S, key, server_key, keys_dir, unencrypted)
    answer = _ask(control, request, ACTIVATION_S, key, server_key, keys_dir, unencrypted)
    print(f"{answer['bundle']} {answer['bundle_digest']}")


@app.command()
def key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Private key; the public one is FILE.pub.")],
) -> None:
    """Make a key pair to sign bundles with (Ed25519)."""
    from rcm_daemon.bundle.signature import new_signing_key

    print(new_signing_key(path))


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="Bundle folder.")],
    private_key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private key, PEM.")],
) -> None:
    """Sign a whole bundle: writes manifest.sig. Daemons that are given the public key serve no others."""
    from rcm_daemon.bundle.verify import sign_bundle

    print(sign_bundle(bundle, private_key))
