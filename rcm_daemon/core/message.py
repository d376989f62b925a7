"""The cumulative state of one stack as published: `rcm-strata-1`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from rcm_daemon.core.records import BOUNDARIES, STRATA, Advice, Boundary, Status

if TYPE_CHECKING:
    from rcm_daemon.core.stack import Acquisition

STRATA_SCHEMA = "rcm-strata-1"
INTERVAL = 0.9

Row = Annotated[list[float], Field(min_length=3, max_length=3)]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of the newest slice, from its receipt: waiting, embedding, labelling, all."""

    wait_ms: float = 0.0
    embed_ms: float = 0.0
    label_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class Source:
    """Who made a message, with what."""

    daemon_version: str
    bundle_name: str
    bundle_digest: str
    provider: str


class StrataMessage(BaseModel):
    """One message of `rcm-strata-1`: every key always present, numbers finite, no nulls.

    Per-slice arrays are parallel and in depth order; depths are in um; numbers that do not apply are 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    htype: Literal["strata"] = "strata"
    schema_: Literal["rcm-strata-1"] = Field(alias="schema", default="rcm-strata-1")
    instrument: str
    stack_id: str
    acquisition: int = Field(ge=1)
    run_id: str
    seq: int = Field(ge=0)
    revision: int = Field(ge=0)
    state: Literal["open", "complete", "incomplete", "aborted", "abandoned"]
    start_seen: bool
    time_s: int
    time_ns: int
    daemon_version: str
    bundle_name: str
    bundle_digest: str
    provider: str

    n_slices: int = Field(ge=0)
    n_expected: int = Field(ge=0)
    n_missing: int = Field(ge=0)
    missing_index: list[int]
    n_rejected: int = Field(ge=0)
    rejected_index: list[int]
    rejected_reason: list[str]
    n_conflicts: int = Field(ge=0)
    conflict_index: list[int]
    n_lost: int = Field(ge=0)

    classes: list[str] = list(STRATA)
    index: list[int]
    z_um: list[float]
    label: list[Literal["epidermis", "dej", "dermis"]]
    probability: list[Row]
    posterior: list[Row]
    settled: list[bool]
    flags: list[str]

    stack_flags: str
    epidermis_dej_status: Status
    epidermis_dej_found: bool
    epidermis_dej_um: float
    epidermis_dej_low_um: float
    epidermis_dej_high_um: float
    epidermis_dej_forecast_um: float
    epidermis_dej_forecast_low_um: float
    epidermis_dej_forecast_high_um: float
    dej_dermis_status: Status
    dej_dermis_found: bool
    dej_dermis_um: float
    dej_dermis_low_um: float
    dej_dermis_high_um: float
    dej_dermis_forecast_um: float
    dej_dermis_forecast_low_um: float
    dej_dermis_forecast_high_um: float
    interval: float = INTERVAL
    mosaic_name: list[str]
    mosaic_z_um: list[float]
    mosaic_low_um: list[float]
    mosaic_high_um: list[float]
    advice: Literal["continue", "stop", "acquire_at", "none"]
    advice_z_um: float
    advice_revision: int

    wait_ms: float
    embed_ms: float
    label_ms: float
    total_ms: float

    @property
    def topic(self) -> bytes:
        """The topic frame, `strata.<instrument>.<stack_id>`, all but `[A-Za-z0-9_-]` %-escaped."""
        return f"strata.{self.instrument}.{_escape(self.stack_id)}".encode()

    def to_json(self) -> str:
        """Return strict JSON on one line."""
        return self.model_dump_json(by_alias=True)  # numbers that are not finite did not get past validation


def build_message(
    stack: Acquisition, source: Source, latency: Latency, *, seq: int, time_ns: int, n_lost: int
) -> StrataMessage:
    """Write the state of a stack as it stands.

    Parameters
    ----------
    stack
        The acquisition, its estimate (if any) no older than its embeddings.
    source
        Daemon, bundle and provider.
    latency
        Of the newest slice.
    seq
        The endpoint's counter.
    time_ns
        Nanoseconds since the epoch.
    n_lost
        Messages of the instrument's run known to be lost.
    """
    estimate = stack.estimate
    slices = stack.partial.slices
    missing = stack.missing_index
    fields: dict[str, Any] = {
        "instrument": stack.instrument,
        "stack_id": stack.stack_id,
        "acquisition": stack.acquisition,
        "run_id": stack.run_id,
        "seq": seq,
        "revision": stack.revision,
        "state": stack.state,
        "start_seen": stack.start is not None,
        "time_s": time_ns // 1_000_000_000,
        "time_ns": time_ns % 1_000_000_000,
        **vars(source),
        "n_slices": len(slices),
        "n_expected": stack.n_expected,
        "n_missing": len(missing),
        "missing_index": missing,
        "n_rejected": stack.n_rejected,
        "rejected_index": list(stack.rejected_index),
        "rejected_reason": list(stack.rejected_reason),
        "n_conflicts": stack.n_conflicts,
        "conflict_index": list(stack.conflict_index),
        "n_lost": n_lost,
        "index": [s.index for s in slices],
        "z_um": [s.z_um for s in slices],
        "label": [STRATA[k] for k in estimate.labels.tolist()] if estimate else [],
        "probability": _rows(estimate.probabilities) if estimate else [],
        "posterior": _rows(estimate.posterior) if estimate else [],
        "settled": estimate.settled.tolist() if estimate else [],
        "flags": [",".join(flags) for flags in stack.partial.flags],
        "stack_flags": ",".join(stack.flags),
        **{key: round(value, 3) for key, value in vars(latency).items()},
    }
    plan = estimate.mosaic if estimate else ()
    fields["mosaic_name"] = [place.name for place in plan]
    for key in ("z_um", "low_um", "high_um"):
        fields[f"mosaic_{key}"] = [getattr(place, key) for place in plan]
    # Advice is for who is still acquiring.
    advice = estimate.advice if estimate and stack.state == "open" else Advice()
    fields |= {"advice": advice.kind, "advice_z_um": advice.z_um}
    fields["advice_revision"] = stack.revision if advice.kind != "none" else 0
    boundaries = estimate.boundaries if estimate else (Boundary(), Boundary())
    for name, boundary in zip(BOUNDARIES, boundaries, strict=True):
        fields[f"{name}_found"] = boundary.found
        fields.update({f"{name}_{key}": value for key, value in vars(boundary).items()})
    return StrataMessage(**fields)


def _rows(probabilities: Any) -> list[list[float]]:  # float32 [n, 3], JSON-ready
    rows: list[list[float]] = probabilities.astype(float).round(7).tolist()
    return rows


def _escape(stack_id: str) -> str:
    return quote(stack_id, safe="").replace(".", "%2E").replace("~", "%7E")
