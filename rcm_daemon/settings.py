"""Every setting of the daemon: command line over `RCM_...` environment over file over default."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from rcm_daemon.bundle.execution import SPIN_US, ProviderChoice, VariantChoice
from rcm_daemon.core.mosaic import MosaicRule
from rcm_daemon.core.rhythm import REHEARSAL_SHARE
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.endpoint import check_endpoint, is_loopback
from rcm_daemon.io.keys import KEY_NAME_PATTERN, default_keys_dir, find_secret

ENV_PREFIX = "RCM_"


def default_state_dir() -> Path:
    """Return systemd's state directory, else the user's."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "rcm-daemon"


def _host_port(value: str) -> str:
    if value and not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}", value):
        raise ValueError("an address reads HOST:PORT")
    return check_endpoint(f"tcp://{value}").removeprefix("tcp://") if value else value


def _words(value: object) -> object:
    """Read a list from an environment variable: words parted by commas or white space."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


Endpoint = Annotated[str, AfterValidator(check_endpoint)]
KeyName = Annotated[str, Field(pattern=KEY_NAME_PATTERN)]


class Settings(BaseSettings):
    """Settings of `rcm-daemon serve`; unknown ones are refused."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    slices_connect: Annotated[list[Endpoint], NoDecode, BeforeValidator(_words), Field(min_length=1)] = [
        "tcp://127.0.0.1:6780"
    ]
    """Endpoints of the acquisition controllers, each publishing `rcm-slice-1`."""
    slices_socket: Literal["sub", "pull"] = "sub"
    """How slices come: SUB to a publisher, or PULL from a pusher."""
    results_bind: Endpoint = "tcp://127.0.0.1:6781"
    """Where `rcm-strata-1` is published (XPUB)."""
    control_bind: Endpoint = "tcp://127.0.0.1:6782"
    """Where control requests are answered (ROUTER)."""
    ingest_bind: Endpoint | Literal[""] = ""
    """Where messages are taken and acknowledged (ROUTER), e.g. tcp://127.0.0.1:6783; empty = nowhere."""
    ingest_credit: Annotated[int, Field(ge=1, le=64)] = 16
    """How many messages a sender of acknowledged ingest may have unanswered."""
    state_dir: Path = Field(default_factory=default_state_dir)
    """Folder of this daemon alone: lock, counters and journal."""
    journal_keep_days: Annotated[float, Field(gt=0, le=36_500)] = 90.0
    """Stacks that ended longer ago are forgotten."""
    journal_max_mb: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """With a journal larger than this (million bytes), the stacks that ended first are forgotten."""
    bundle: Path | None = None
    """Folder of the model bundle; none = the one that comes with the package."""
    bundle_dir: Path | None = None
    """Folder of bundle folders that can be activated while the daemon runs."""
    bundle_public_key: Path | None = None
    """Key that bundles must be signed with (Ed25519, PEM); none = signatures are not looked at."""
    provider: ProviderChoice = "auto"
    """Where the CNN runs: there or not at all; auto = on CUDA where it works, else on the CPU."""
    variant: VariantChoice = "auto"
    """Which form of the CNN runs; auto = the fastest that the bundle holds, as measured when it is opened."""
    estimator: Literal["monotone", "paper"] = "monotone"
    """How labels and boundaries are read: by the bundle's posterior, if it has one, or as the paper does."""
    mosaic: MosaicRule = MosaicRule()
    """Where the five mosaics are planned."""
    n_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """CPU threads of the CNN; 0 = one for each physical core that the daemon may use, but in ONNX Runtime a
    single one unless all take less than 0.8 of its time after a pause, as measured on opening the bundle."""
    spin_us: Annotated[int, Field(ge=0, le=1_000_000)] = SPIN_US
    """How long these threads wait busily for more work before they sleep; 0 = not at all."""
    rehearsal_share: Annotated[float, Field(ge=0, le=0.5)] = REHEARSAL_SHARE
    """Where slices come regularly, at most this share of the time between two is spent on going through the
    last one again just before the next, which is then embedded and labelled from warm caches; 0 = none."""
    slice_timeout_s: Annotated[float, Field(ge=0.1, le=600)] = 10.0
    """A worker that does not answer for one slice by then is replaced."""
    idle_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """After this long without a message an open stack is abandoned."""
    drain_timeout_s: Annotated[float, Field(ge=0, le=300)] = 10.0
    """How long SIGTERM waits for slices in hand."""
    max_instruments: Annotated[int, Field(ge=1, le=1_000)] = 64
    """Messages of further instruments are refused."""
    max_slices_waiting: Annotated[int, Field(ge=1, le=10_000)] = 64
    """With this many slices in hand the daemon stops reading, and the sender's queue fills."""
    n_ended_kept: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Final messages of this many ended stacks can be asked for."""
    encrypt: Literal["remote", "always"] = "remote"
    """Which endpoints let in allowed keys only, encrypted (CURVE): those not loopback, or all."""
    keys_dir: Path = Field(default_factory=default_keys_dir)
    """Folder of the daemon's key pair and the allow-list; see `rcm-daemon keys`."""
    key: KeyName = "daemon"
    """Name of the daemon's own key pair."""
    controller_keys: Annotated[list[KeyName], NoDecode, BeforeValidator(_words)] = []
    """Names of the allowed keys of the controllers in `slices_connect`: one for all, or one for each."""
    allow_unencrypted_remote: bool = False
    """Serve endpoints that are not loopback although nothing on them is encrypted or authenticated."""
    pseudonymise: bool = False
    """Publish pseudonyms for stack and run ids and no texts of refusals, as logs and metrics always do."""
    metrics_bind: Annotated[str, AfterValidator(_host_port)] = ""
    """Where Prometheus metrics are served over HTTP, as HOST:PORT; empty = nowhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""

    def is_encrypted(self, endpoint: str) -> bool:
        """Whether this endpoint lets in allowed keys only."""
        return self.encrypt == "always" or not (self.allow_unencrypted_remote or is_loopback(endpoint))

    def controller_key(self, position: int) -> str:
        """Name of the allowed key of `slices_connect[position]`."""
        return self.controller_keys[position if len(self.controller_keys) > 1 else 0]

    @property
    def endpoints(self) -> list[str]:
        """All that is bound or connected to over ZeroMQ."""
        bound = [self.results_bind, self.control_bind, self.ingest_bind]
        return [*self.slices_connect, *(endpoint for endpoint in bound if endpoint)]

    @model_validator(mode="after")
    def _locked(self) -> Settings:
        """Refuse endpoints that would have to be encrypted and cannot be, all faults at once."""
        if self.encrypt == "always" and self.allow_unencrypted_remote:
            raise ValueError("encrypt = always and allow_unencrypted_remote exclude each other")
        locked = [e for e in self.endpoints if self.is_encrypted(e)]
        faults = []
        why = "which encrypt = always demands" if self.encrypt == "always" else "which is not loopback"
        if locked and find_secret(self.keys_dir, self.key) is None:
            faults.append(
                f"{', '.join(locked)}, {why}, needs a key, but {self.keys_dir} has no {self.key}.secret: "
                f"rcm-daemon keys new {self.key} makes one; allow_unencrypted_remote = true does without"
            )
        if self.metrics_bind and not (
            self.allow_unencrypted_remote or is_loopback(f"tcp://{self.metrics_bind}")
        ):
            faults.append(
                f"metrics_bind {self.metrics_bind} is not loopback and metrics are not encrypted: "
                "set allow_unencrypted_remote = true to serve them all the same"
            )
        controllers = [e for e in self.slices_connect if self.is_encrypted(e)]
        if controllers and len(self.controller_keys) not in (1, len(self.slices_connect)):
            faults.append(
                f"controller_keys names the allowed key of {', '.join(controllers)}, {why}: one for all of "
                f"slices_connect or one for each, got {len(self.controller_keys)}"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over file; no .env file and no secrets folder."""
        assert isinstance(init_settings, InitSettingsSource)  # noqa: S101  # pydantic-settings' own contract
        given = dict(init_settings.init_kwargs)
        from_file = given.pop("from_file_", {})
        return (
            InitSettingsSource(settings_cls, given),
            env_settings,
            InitSettingsSource(settings_cls, from_file),
        )


def load_settings(config: Path | None, command_line: dict[str, Any]) -> Settings:
    """Read all settings.

    Parameters
    ----------
    config
        A TOML file, or None.
    command_line
        What was given there; None values count as not given.

    Raises
    ------
    ConfigurationError
        With every fault found: in the file, the environment and the command line.
    """
    faults: list[str] = []
    from_file = _read_file(config, faults) if config is not None else {}
    variables = [f"{ENV_PREFIX}{key.upper()}" for key in Settings.model_fields]
    faults.extend(
        _unknown(name.upper(), variables, f"environment variable {name}")
        for name in sorted(os.environ)
        if name.startswith(ENV_PREFIX) and name.upper() not in variables
    )
    unknown = sorted(from_file.keys() - Settings.model_fields.keys())
    faults.extend(_unknown(key, [*Settings.model_fields], f"key {key} in {config}") for key in unknown)
    from_file = {key: value for key, value in from_file.items() if key not in unknown}
    given = {key: value for key, value in command_line.items() if value is not None}
    try:
        settings = Settings(from_file_=from_file, **given)  # type: ignore[call-arg]
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = ".".join(str(part) for part in fault["loc"])
            message = fault["msg"].removeprefix("Value error, ")
            if name:
                message = f"{name}: {message}, got {fault['input']!r}"
                message += _origin(str(fault["loc"][0]), given, config)
            faults.append(message)
    except SettingsError as error:  # a structured one in the environment that is no JSON
        faults.append(f"a setting of several values must be JSON ({error})")
    if faults:
        raise ConfigurationError(faults)
    return settings


def _read_file(config: Path, faults: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(f"the configuration file {config} cannot be read ({error.strerror})")
    except ValueError as error:
        faults.append(f"the configuration file {config} cannot be read as TOML ({error})")
    return {}


def _origin(key: str, command_line: dict[str, Any], config: Path | None) -> str:
    """Say whether a value comes from the environment or the file; nothing of the command line's."""
    if key in command_line:
        return ""
    variables = [name for name in os.environ if name.upper() == f"{ENV_PREFIX}{key.upper()}"]
    return f" in environment variable {variables[0]}" if variables else f" in {config}"


def _unknown(name: str, known: list[str], where: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{where} is no setting" + (f"; did you mean {near[0]}?" if near else "")
