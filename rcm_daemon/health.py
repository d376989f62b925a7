"""What the daemon counts, and how it is: the answer to `get_health`."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rcm_daemon import __version__

if TYPE_CHECKING:
    from rcm_daemon.bundles import Bundles
    from rcm_daemon.core.ledger import Ledger
    from rcm_daemon.core.pseudonyms import Pseudonyms
    from rcm_daemon.core.rejection import Rejection
    from rcm_daemon.inference import Inference
    from rcm_daemon.io.door import Door
    from rcm_daemon.lifecycle import Lifecycle
    from rcm_daemon.publishing import Publishing
    from rcm_daemon.recording import Recording
    from rcm_daemon.rehearsal import Rehearsal
    from rcm_daemon.settings import Settings
    from rcm_daemon.vitals import Vitals

log = logging.getLogger("rcm_daemon")


@dataclass
class Counts:
    """What has come since the start: messages, well-formed slices, answers of workers, refusals by rule."""

    pseudonyms: Pseudonyms
    n_messages: int = 0
    n_slices: int = 0
    n_done: int = 0
    rejections: Counter[str] = field(default_factory=Counter)
    started_s: float = field(default_factory=time.monotonic)

    def refuse(self, rejection: Rejection) -> None:
        """Count and log a refusal."""
        self.rejections[rejection.rule.name] += 1
        origin = rejection.origin
        # Stack ids can hold patients' names, and what was expected and got can quote them.
        stack = self.pseudonyms.of(origin.stack_id) if origin.stack_id else ""
        fields = {"rule": rejection.rule.name.lower(), "number": f"R{rejection.rule.value}"}
        fields |= {"instrument": origin.instrument, "stack": stack, "index": str(origin.index)}
        log.warning("message refused", extra=fields)


@dataclass(frozen=True)
class Health:
    """The parts of a daemon that its health is read from."""

    counts: Counts
    ledger: Ledger
    inference: Inference
    bundles: Bundles
    recording: Recording
    publishing: Publishing
    door: Door
    vitals: Vitals
    lifecycle: Lifecycle
    rehearsal: Rehearsal

    def fields(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        source = self.bundles.active_source
        fault = self.recording.writer.fault
        counts, door = self.counts, self.door
        state = "not recording" if fault else "serving"
        return {
            "ready": self.vitals.is_sound and not fault,
            "state": "draining" if self.lifecycle.draining else state,
            "n_messages": counts.n_messages,
            "n_slices": counts.n_slices,
            "n_rejected": counts.rejections.total(),
            "n_lost": self.ledger.n_lost_now,
            "n_forgotten": self.ledger.n_forgotten,
            "provider": source.provider,
            "bundle_name": source.bundle_name,
            "bundle_digest": source.bundle_digest,
            "uptime_s": round(time.monotonic() - counts.started_s, 3),
            "daemon_version": __version__,
            **self.bundles.running,
            "n_rehearsed": self.rehearsal.n_passes,
            "n_waiting": self.inference.n_waiting,
            "n_open_stacks": self.publishing.n_open,
            "n_cnn_runs": self.inference.n_embedded,
            "n_worker_restarts": self.inference.n_restarts,
            "worker_pid": self.bundles.active.supervisor.pid,
            "journal_fault": fault,
            "n_unwritten": self.recording.n_unwritten,
            "n_damaged": self.recording.n_damaged,
            "settings_fault": self.lifecycle.fault,
            "rejected_rule": sorted(counts.rejections),
            "rejected_count": [counts.rejections[name] for name in sorted(counts.rejections)],
            "refused_connection": [f"{name}/{reason}" for name, reason in sorted(door.refused)],
            "refused_count": [door.refused[which] for which in sorted(door.refused)],
        }

    def told_when_ready(self, settings: Settings) -> dict[str, Any]:
        """Return what the daemon logs once it serves: with what, how, and where."""
        known = self.fields()
        return {
            "bundle": known["bundle_name"],
            "digest": known["bundle_digest"][:12],
            **{key: known[key] for key in ("provider", "variant", "variant_reason", "n_threads")},
            "results": settings.results_bind,
            "control": settings.control_bind,
            "ingest": settings.ingest_bind,
        }
