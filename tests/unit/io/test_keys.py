"""Key pairs and the allow-list, as files and as commands."""

from __future__ import annotations

import json
import os
import stat

import pytest
import zmq
from typer.testing import CliRunner

from rcm_daemon.cli import app
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.allow_list import AllowList, allow, read_allowed, revoke
from rcm_daemon.io.keys import find_secret, load_key_pair, load_public_key, new_key_pair


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def refusal(call, *arguments):
    with pytest.raises(ConfigurationError) as caught:
        call(*arguments)
    (fault,) = caught.value.faults
    return fault


def test_a_pair_is_written_once_and_its_secret_is_its_owners_alone(tmp_path):
    umask = os.umask(0)
    try:
        pair = new_key_pair(tmp_path / "keys", "m1")
    finally:
        os.umask(umask)
    assert mode(tmp_path / "keys/m1.secret") == 0o600
    assert zmq.curve_public(pair.secret) == pair.public
    assert load_key_pair(tmp_path / "keys", "m1") == pair
    assert load_public_key(tmp_path / "keys", "m1") == pair.public
    assert pair.secret.decode() not in repr(pair)
    assert "is there already" in refusal(new_key_pair, tmp_path / "keys", "m1")
    assert load_key_pair(tmp_path / "keys", "m1") == pair


@pytest.mark.parametrize("lost", ["daemon.public", "daemon.secret"])
def test_where_one_half_of_a_pair_is_there_no_other_half_is_made(tmp_path, lost):
    new_key_pair(tmp_path, "daemon")
    (tmp_path / lost).unlink()
    with pytest.raises(ConfigurationError, match="is there already"):
        new_key_pair(tmp_path, "daemon")
    assert not (tmp_path / lost).exists()


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660])
def test_a_secret_others_can_read_is_refused(tmp_path, bits):
    new_key_pair(tmp_path, "m1")
    (tmp_path / "m1.secret").chmod(bits)
    assert "chmod 600" in refusal(load_key_pair, tmp_path, "m1")


@pytest.mark.parametrize("text", ["", "x" * 40 + "y", "short", "~" * 40, "\xff" * 40])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path, text):
    (tmp_path / "m1.secret").write_bytes(text.encode("latin-1"))
    (tmp_path / "m1.secret").chmod(0o600)
    fault = refusal(load_key_pair, tmp_path, "m1")
    assert "must hold a key of 40 Z85 characters" in fault
    assert not text or text not in fault


@pytest.mark.hazard("H11")
@pytest.mark.parametrize("name", ["", "../m1", "a/b", "m 1", "m1\n", "x" * 65, "é"])
def test_a_name_is_never_a_path(tmp_path, name):
    for call in (new_key_pair, load_key_pair, load_public_key, revoke):
        assert "a key's name must match" in refusal(call, tmp_path / "keys", name)
    assert not (tmp_path / "keys").exists()


def test_credentials_come_before_the_folder(tmp_path, monkeypatch):
    new_key_pair(tmp_path / "keys", "daemon")
    given = new_key_pair(tmp_path / "credentials", "daemon")
    (tmp_path / "credentials/daemon.secret").chmod(0o440)  # what systemd shows through its access list
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert find_secret(tmp_path / "keys", "daemon") == tmp_path / "credentials/daemon.secret"
    assert load_key_pair(tmp_path / "keys", "daemon") == given


def test_allow_and_revoke(tmp_path):
    one, two = (new_key_pair(tmp_path, name) for name in ("one", "two"))
    listed = AllowList(tmp_path)
    assert listed.find(one.public) is None
    allow(tmp_path, "one", one.public, "m1")
    allow(tmp_path, "two", two.public, "")
    found = listed.find(one.public)
    assert found is not None
    assert (found.name, found.instrument) == ("one", "m1")
    allow(tmp_path, "one", one.public, "*")
    changed = listed.find(one.public)
    assert changed is not None
    assert changed.instrument == "*"
    assert "revoke two first" in refusal(allow, tmp_path, "one", two.public, "")
    assert "revoke one first" in refusal(allow, tmp_path, "three", one.public, "")
    revoke(tmp_path, "one")
    assert listed.find(one.public) is None
    assert listed.find(two.public) is not None
    assert "no key 'one' is allowed" in refusal(revoke, tmp_path, "one")


@pytest.mark.parametrize("instrument", ["m 1", "m1\n", "a.b", "x" * 65, "**"])
def test_an_instrument_that_is_none_cannot_be_allowed(tmp_path, instrument):
    pair = new_key_pair(tmp_path, "one")
    assert "an instrument's name must match" in refusal(allow, tmp_path, "one", pair.public, instrument)
    assert read_allowed(tmp_path) == ()


KEY = {"name": "a", "public_key": "x" * 40, "instrument": ""}


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        '{"schema": "rcm-keys-2", "keys": []}',
        json.dumps({"keys": [KEY | {"role": "admin"}]}),
        json.dumps({"keys": [KEY, KEY]}),
        json.dumps({"keys": [KEY, KEY | {"name": "b"}]}),
        json.dumps({"keys": [KEY | {"name": "../a"}]}),
        json.dumps({"keys": [KEY | {"public_key": "short"}]}),
    ],
)
def test_a_damaged_list_lets_nobody_new_in_and_sends_nobody_away(tmp_path, document):
    one = new_key_pair(tmp_path, "one")
    allow(tmp_path, "one", one.public, "m1")
    listed = AllowList(tmp_path)
    assert listed.find(one.public) is not None
    assert not listed.damage
    (tmp_path / "allowed.json").write_text(document)
    assert listed.find(one.public) is not None
    assert "must be an allow-list" in listed.damage
    assert "must be an allow-list" in refusal(read_allowed, tmp_path)
    (tmp_path / "allowed.json").unlink()
    assert listed.find(one.public) is None
    assert not listed.damage


def command(folder, *words):
    return CliRunner().invoke(app, ["keys", *words, "--keys-dir", str(folder)])


def test_commands(tmp_path):
    viewer = new_key_pair(tmp_path / "elsewhere", "viewer")
    assert command(tmp_path, "new", "daemon").exit_code == 0
    assert command(tmp_path, "new", "vendor").exit_code == 0
    assert command(tmp_path, "allow", "vendor", "--instrument", "m1").exit_code == 0
    assert command(tmp_path, "allow", "viewer", str(tmp_path / "elsewhere/viewer.public")).exit_code == 0
    lines = command(tmp_path, "list").output.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["daemon", "vendor", "viewer"]
    assert [line.split("  ")[2] for line in lines] == [
        "not allowed (secret here)",
        "allowed: instrument m1 (secret here)",
        "allowed: results and requests",
    ]
    assert viewer.public.decode() in lines[2]
    assert all(secret.read_text().strip() not in "".join(lines) for secret in tmp_path.glob("*.secret"))
    assert command(tmp_path, "allow", "daemon", "--instrument", "*", "--operator").exit_code == 0
    assert "allowed: any instrument, operator" in command(tmp_path, "list").output
    assert command(tmp_path, "revoke", "daemon").exit_code == 0
    assert command(tmp_path, "revoke", "vendor").exit_code == 0
    assert [key.name for key in read_allowed(tmp_path)] == ["viewer"]
    assert isinstance(command(tmp_path, "revoke", "vendor").exception, ConfigurationError)


def test_a_key_that_is_neither_a_key_nor_a_file_is_told_so(tmp_path):
    fault = command(tmp_path, "allow", "viewer", str(tmp_path / "none.public")).exception
    assert isinstance(fault, ConfigurationError)
    assert "40 Z85 characters or a file with them" in str(fault)
    assert str(fault).endswith("none.public' is neither")
