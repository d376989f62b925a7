"""Settings: where they come from, which wins, and that every fault is listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.keys import new_key_pair
from rcm_daemon.settings import Settings, default_state_dir, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("RCM_")]:
        monkeypatch.delenv(name)


def faults(**command_line):
    with pytest.raises(ConfigurationError) as caught:
        load_settings(command_line.pop("config", None), command_line)
    assert caught.value.exit_code == 78
    return caught.value.faults


def test_defaults_are_loopback():
    settings = load_settings(None, {})
    assert settings.slices_connect == ["tcp://127.0.0.1:6780"]
    assert (settings.results_bind, settings.control_bind) == ("tcp://127.0.0.1:6781", "tcp://127.0.0.1:6782")


def test_command_line_over_environment_over_file(tmp_path, monkeypatch):
    config = tmp_path / "rcm.toml"
    config.write_text('provider = "cuda"\nn_threads = 3\nidle_timeout_s = 7\n')
    monkeypatch.setenv("RCM_N_THREADS", "4")
    monkeypatch.setenv("RCM_IDLE_TIMEOUT_S", "8")
    settings = load_settings(config, {"idle_timeout_s": 9, "bundle": None})
    assert (settings.provider, settings.n_threads, settings.idle_timeout_s) == ("cuda", 4, 9.0)


def test_lists_in_the_environment_are_words(monkeypatch):
    monkeypatch.setenv("RCM_SLICES_CONNECT", "tcp://127.0.0.1:1, tcp://localhost:2 ipc:///run/rcm")
    assert load_settings(None, {}).slices_connect == [
        "tcp://127.0.0.1:1",
        "tcp://localhost:2",
        "ipc:///run/rcm",
    ]


def test_a_setting_of_several_values_that_is_no_json_is_a_fault(monkeypatch):
    monkeypatch.setenv("RCM_MOSAIC", "{above_um: 3}")
    (fault,) = faults()
    assert "must be JSON" in fault
    assert "mosaic" in fault


def test_every_fault_is_listed(tmp_path, monkeypatch):
    config = tmp_path / "rcm.toml"
    config.write_text("idle_timeout = 5\nmax_instruments = 0\n[slices]\nx = 1\n")
    monkeypatch.setenv("RCM_PROVIDER", "tpu")
    monkeypatch.setenv("RCM_BUNDEL", "x")
    found = faults(config=config, results_bind="localhost:99", slices_connect=["tcp://127.0.0.1:99999"])
    for expected in (
        "key idle_timeout in",
        "did you mean idle_timeout_s?",
        "key slices in",
        "environment variable RCM_BUNDEL is no setting; did you mean RCM_BUNDLE?",
        "max_instruments: ",
        "provider: ",
        "results_bind: an endpoint reads tcp://HOST:PORT",
        "slices_connect.0: a tcp endpoint reads",
    ):
        assert any(expected in fault for fault in found), (expected, found)
    assert len(found) == 7


def test_a_fault_names_where_its_value_comes_from(tmp_path, monkeypatch):
    config = tmp_path / "rcm.toml"
    config.write_text('n_threads = -1\nprovider = "cpu"\nspin_us = -3\n[mosaic]\nabove_um = "x"\n')
    monkeypatch.setenv("RCM_PROVIDER", "tpu")
    found = faults(config=config, spin_us=-2)
    assert sorted((fault.partition(":")[0], fault.partition(", got ")[2]) for fault in found) == [
        ("mosaic.above_um", f"'x' in {config}"),
        ("n_threads", f"-1 in {config}"),
        ("provider", "'tpu' in environment variable RCM_PROVIDER"),
        ("spin_us", "-2"),
    ]


def test_two_endpoints_in_one_are_not_taken_for_a_remote_one():
    (fault,) = faults(slices_connect=["tcp://127.0.0.1:1 tcp://127.0.0.1:2"])
    assert "slices_connect.0: an endpoint reads tcp://HOST:PORT" in fault


@pytest.mark.parametrize("text", ["provider = ", "\xff"])
def test_unreadable_file(tmp_path, text):
    config = tmp_path / "rcm.toml"
    config.write_bytes(text.encode("latin-1"))
    assert "cannot be read as TOML" in faults(config=config)[0]


def test_a_file_that_is_not_there_is_called_so(tmp_path):
    absent = tmp_path / "absent.toml"
    assert faults(config=absent) == (
        f"the configuration file {absent} cannot be read (No such file or directory)",
    )


REMOTE = [
    "tcp://0.0.0.0:1",
    "tcp://*:1",
    "tcp://192.168.0.7:1",
    "tcp://example.org:1",
    "tcp://127.example.org:1",
    "tcp://localhost.example.org:1",
    "tcp://127.0.0.1:0;10.0.0.1:1",
    "tcp://[2001:db8::1]:1",
]


@pytest.mark.hazard("H64")
@pytest.mark.parametrize("endpoint", REMOTE)
@pytest.mark.parametrize("name", ["results_bind", "control_bind", "slices_connect"])
def test_remote_endpoints_need_keys_or_a_word(tmp_path, endpoint, name):
    value = [endpoint] if name == "slices_connect" else endpoint
    given = {name: value, "keys_dir": tmp_path}
    assert "which is not loopback" in faults(**given)[0]
    settings = load_settings(None, given | {"allow_unencrypted_remote": True})
    assert getattr(settings, name) == value
    assert not settings.is_encrypted(endpoint)
    new_key_pair(tmp_path, "daemon")
    settings = load_settings(None, given | {"controller_keys": ["vendor"]})
    assert settings.is_encrypted(endpoint)
    assert not settings.is_encrypted("tcp://127.0.0.1:5")


@pytest.mark.hazard("H64")
def test_a_remote_controller_needs_the_name_of_its_key(tmp_path):
    new_key_pair(tmp_path, "daemon")
    several = ["tcp://10.0.0.1:1", "tcp://10.0.0.2:1", "tcp://127.0.0.1:1"]
    for names in ([], ["a", "b"]):
        (fault,) = faults(slices_connect=several, keys_dir=tmp_path, controller_keys=names)
        assert "controller_keys names the allowed key of tcp://10.0.0.1:1, tcp://10.0.0.2:1" in fault
    for names in (["a"], ["a", "b", "c"]):
        settings = load_settings(
            None, {"slices_connect": several, "keys_dir": tmp_path, "controller_keys": names}
        )
        assert [settings.controller_key(i) for i in range(2)] == (names * 2)[:2]


@pytest.mark.hazard("H64")
def test_everything_can_be_locked(tmp_path):
    (fault,) = faults(encrypt="always", keys_dir=tmp_path)
    assert "which encrypt = always demands" in fault
    new_key_pair(tmp_path, "daemon")
    given = {"encrypt": "always", "keys_dir": tmp_path, "controller_keys": ["vendor"]}
    assert load_settings(None, given).is_encrypted("tcp://127.0.0.1:1")
    assert "exclude each other" in faults(**given, allow_unencrypted_remote=True)[0]


def test_every_setting_is_described():
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_state_folder(monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/rcm-daemon:/var/lib/other")
    assert default_state_dir() == Path("/var/lib/rcm-daemon")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/state")
    assert default_state_dir() == Path("/home/x/state/rcm-daemon")


def test_the_example_file_holds_the_defaults():
    example = Path(__file__).parents[3] / "deploy/rcm-daemon.toml"
    assert load_settings(example, {}) == load_settings(None, {})
    text = example.read_text()
    assert all(f"{name} = " in text for name in Settings.model_fields)


@pytest.mark.hazard("H64")
@pytest.mark.parametrize("bind", ["0.0.0.0:9781", "10.0.0.1:9781", "example.org:9781", "127.example.org:1"])
def test_metrics_are_for_this_machine_unless_told_otherwise(bind):
    (fault,) = faults(metrics_bind=bind)
    assert "is not loopback and metrics are not encrypted" in fault
    assert load_settings(None, {"metrics_bind": bind, "allow_unencrypted_remote": True}).metrics_bind == bind


@pytest.mark.parametrize("bind", ["127.0.0.1:9781", "[::1]:9781", "localhost:9781", ""])
def test_metrics_on_loopback(bind):
    assert load_settings(None, {"metrics_bind": bind}).metrics_bind == bind


@pytest.mark.parametrize("bind", ["9781", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:80"])
def test_metrics_bind_reads_host_and_port(bind):
    assert faults(metrics_bind=bind)[0].startswith("metrics_bind: ")
