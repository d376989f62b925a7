"""`rcm-daemon bundle`: what is done to bundles besides checking them."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads annotations
from typing import Annotated

import typer

app = typer.Typer(help="Sign model bundles.", no_args_is_help=True)


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
