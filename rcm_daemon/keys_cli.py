"""`rcm-daemon keys`: who may come in, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rcm_daemon.errors import ConfigurationError

app = typer.Typer(help="Make, allow and revoke the keys (CURVE) that may connect.", no_args_is_help=True)

KeysDirOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", envvar="RCM_KEYS_DIR", help="Folder of keys; default: ~/.config/rcm-daemon/keys."
    ),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="Own key pair; the connection is encrypted.")
]
ServerKeyOption = Annotated[
    str, typer.Option(metavar="NAME", help="The daemon's public key, NAME.public in the folder of keys.")
]
UnencryptedOption = Annotated[
    bool, typer.Option("--allow-unencrypted-remote", help="Use no keys although others can reach this.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, - and _.")]


def keys_folder(keys_dir: Path | None) -> Path:
    """Return the folder a command means."""
    from rcm_daemon.io.keys import default_keys_dir

    return default_keys_dir() if keys_dir is None else keys_dir


@app.command()
def new(name: NameArgument, keys_dir: KeysDirOption = None) -> None:
    """Make a key pair: NAME.secret, for its owner alone, and NAME.public, to be handed on."""
    from rcm_daemon.io.keys import new_key_pair

    folder = keys_folder(keys_dir)
    pair = new_key_pair(folder, name)
    print(f"{folder / name}.public: {pair.public.decode()}")


@app.command()
def allow(
    name: NameArgument,
    public_key: Annotated[
        str,
        typer.Argument(metavar="[KEY]", help="40 characters or a file with them; default: NAME.public."),
    ] = "",
    instrument: Annotated[
        str,
        typer.Option(
            metavar="NAME|*", help="The one instrument it may send slices as; * = any. Default: none."
        ),
    ] = "",
    operator: Annotated[bool, typer.Option("--operator", help="It may activate bundles.")] = False,
    keys_dir: KeysDirOption = None,
) -> None:
    """Let a key in; without --instrument it may see results and ask, but send no slices."""
    from rcm_daemon.io.allow_list import allow as allow_key
    from rcm_daemon.io.keys import check_public_key, load_public_key, read_key

    folder = keys_folder(keys_dir)
    if not public_key:
        key = load_public_key(folder, name)
    elif Path(public_key).is_file():
        key = read_key(Path(public_key))
    else:
        try:
            key = check_public_key(public_key)
        except ConfigurationError:
            fault = f"a key is 40 Z85 characters or a file with them, {public_key[:200]!a} is neither"
            raise ConfigurationError([fault]) from None
    allow_key(folder, name, key, instrument, operator=operator)
    print(f"{name} is allowed{f' as instrument {instrument}' if instrument else ''}")


@app.command()
def revoke(name: NameArgument, keys_dir: KeysDirOption = None) -> None:
    """Let a key in no more; what a live connection of it still sends is dropped."""
    from rcm_daemon.io.allow_list import revoke as revoke_key

    revoke_key(keys_folder(keys_dir), name)
    print(f"{name} is revoked")


@app.command(name="list")
def list_(keys_dir: KeysDirOption = None) -> None:
    """List the keys of the folder: name, whether it is allowed and as what, public key."""
    from rcm_daemon.io.allow_list import read_allowed
    from rcm_daemon.io.keys import find_secret, load_public_key, public_key_names

    folder = keys_folder(keys_dir)
    rows = {
        name: (load_public_key(folder, name).decode(), "not allowed") for name in public_key_names(folder)
    }
    for key in read_allowed(folder):
        what = {"": "allowed: results and requests", "*": "allowed: any instrument"}
        rights = what.get(key.instrument, f"allowed: instrument {key.instrument}")
        rows[key.name] = key.public_key, rights + (", operator" if key.operator else "")
    for name, (key_text, allowed) in sorted(rows.items()):
        own = " (secret here)" if find_secret(folder, name) is not None else ""
        print(f"{name}  {key_text}  {allowed}{own}")
