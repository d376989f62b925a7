"""Which bundle is served, which others open stacks still need, and the change from one to another.

Every bundle has a worker of its own, so that a new one is loaded, checked and, if bad, refused beside the
one that serves. A stack keeps the bundle that it began with.
"""

from __future__ import annotations

import json
import logging
import os
import select
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rcm_daemon import __version__
from rcm_daemon.bundle.launch import Launch
from rcm_daemon.bundle.location import default_bundle_path, resolve_bundle
from rcm_daemon.bundle.manifest import Manifest, bundle_digest, digests_of, read_manifest_bytes
from rcm_daemon.bundle.signature import read_public_key
from rcm_daemon.core.estimator import EstimatorParameters
from rcm_daemon.core.message import Source
from rcm_daemon.core.pipeline import Estimation
from rcm_daemon.errors import BundleError, ConfigurationError
from rcm_daemon.inference import NotOpened, Opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rcm_daemon.bundle.channel import BundleInfo
    from rcm_daemon.bundle.manifest import VariantName
    from rcm_daemon.inference import Desk, Inference
    from rcm_daemon.io.control import Asker
    from rcm_daemon.io.state_dir import StateDir
    from rcm_daemon.settings import Settings

log = logging.getLogger("rcm_daemon")

ACTIVE_FILE = "active_bundle"


@dataclass(frozen=True)
class Candidate:
    """A bundle folder with a readable manifest; its files have not been looked at.

    `digests` are those of its variants, the bundle's own that of fp32.
    """

    folder: Path
    name: str
    digests: dict[VariantName, str]

    @property
    def digest(self) -> str:
        """The bundle's own."""
        return self.digests["fp32"]

    def variant_of(self, digest: str) -> VariantName:
        """Which of its variants makes embeddings of this digest."""
        return next(variant for variant, known in self.digests.items() if known == digest)


@dataclass(frozen=True)
class Activation:
    """A change that is under way: the worker that opens the bundle, and who asked for it."""

    desk: Desk
    name: str
    asker: Asker


class Bundles:
    """The desks by digest, one of them active."""

    def __init__(self, inference: Inference, settings: Settings, state_dir: StateDir) -> None:
        self._inference = inference
        self._settings = settings
        self._state_dir = state_dir
        self._desks: dict[str, Desk] = {}
        self.activation: Activation | None = None
        self._is_remembered = False
        self.active = self._open_first()
        self.active_digest = ""

    @property
    def active_source(self) -> Source:
        """Who makes the messages of stacks that open now."""
        return self.source(self.active_digest)

    def estimation(self, digest: str) -> Estimation:
        """How strata are read off what a bundle's networks give."""
        desk = self._desks.get(digest)
        info = desk.supervisor.bundle if desk is not None else None
        text = info.estimator if info is not None and self._settings.estimator == "monotone" else ""
        return Estimation(_parameters(text), self._settings.mosaic)

    def source(self, digest: str) -> Source:
        """Who makes the messages of stacks labelled with a bundle."""
        desk = self._desks.get(digest)
        info = desk.supervisor.bundle if desk is not None else None
        if info is not None:
            return Source(__version__, info.name, info.digest, info.provider)
        found = self._find(digest)
        return Source(__version__, found.name.partition("@")[0] if found else "", digest, "")

    def desk_of(self, digest: str) -> Desk | None:
        """Return the desk of a bundle, opened now if need be; None where the bundle is gone."""
        try:
            return self._desk_of(digest)
        except BundleError as error:
            log.error("a bundle that stacks began with cannot be served", extra={"reason": str(error)})
            return None

    def _desk_of(self, digest: str) -> Desk | None:
        desk = self._desks.get(digest)
        if desk is None and (found := self._find(digest)) is not None:
            # As the stack began, whatever would be chosen now.
            desk = self._open(found.folder, digest, variant=found.variant_of(digest))
            self._desks[digest] = desk
        return desk

    @property
    def running(self) -> dict[str, str | int]:
        """How the active bundle runs: variant, why that one, on how many threads; empty while it does not."""
        info = self.active.supervisor.bundle
        if info is None:
            return {"variant": "", "variant_reason": "", "n_threads": 0}
        return {"variant": info.variant, "variant_reason": info.reason, "n_threads": info.n_threads}

    @property
    def active_name(self) -> str:
        """`name@version` of the active bundle."""
        info = self.active.supervisor.bundle
        return f"{info.name}@{info.version}" if info is not None else ""

    def names(self) -> list[str]:
        """Return what can be activated, the active one among it, as `name@version`."""
        return sorted({self.active_name} | {candidate.name for candidate in self._candidates()})

    def await_active(self, on_progress: Callable[[], None]) -> None:
        """Wait until the active bundle is served; if the one activated last cannot be, the configured one is.

        `on_progress` is called now and then.

        Raises
        ------
        BundleError
            It cannot be.
        """
        complaint = self._await(self.active, on_progress)
        if complaint and self._is_remembered:
            log.error("the bundle activated last cannot be served", extra={"reason": complaint})
            self.active = self._open(resolve_bundle(self._settings.bundle))
            complaint = self._await(self.active, on_progress)
        if complaint:
            raise BundleError(complaint)

    def await_opened(self, digest: str, on_progress: Callable[[], None]) -> None:
        """Wait until a bundle that stacks began with is served, or known not to be.

        Raises
        ------
        BundleError
            It is there but no worker can be started on it now: the next start may do better.
        """
        desk = self._desk_of(digest)
        is_opening = desk is not None and desk.supervisor.bundle is None
        if desk is not None and is_opening and (complaint := self._await(desk, on_progress)):
            log.error("a bundle that stacks began with cannot be served", extra={"reason": complaint})

    def begin_activation(self, name: str, asker: Asker) -> None:
        """Open a bundle beside the active one; `opened` or `not_opened` follows.

        Raises
        ------
        BundleError
            There is no such bundle, or another change is under way.
        """
        if self.activation is not None:
            raise BundleError(f"{self.activation.name} is being activated; try again after that")
        found = next((c for c in self._candidates() if c.name == name), None)
        if found is None:
            known = ", ".join(self.names())
            raise BundleError(f"a bundle to activate is one of {known}, got {name[:200]!a}")
        self.activation = Activation(self._open(found.folder, found.digest, checked=True), found.name, asker)

    def opened(self, desk: Desk, info: BundleInfo) -> Activation | None:
        """Take a bundle that is served now; returns the change that this completes."""
        activation = self.activation
        if activation is None or activation.desk is not desk:
            self._desks.setdefault(info.digest, desk)
            if desk is self.active:
                self.active_digest = info.digest
            return None
        self.activation = None
        old = self._desks.get(info.digest)
        if old is not None:  # it was served already: the new worker takes over nothing
            self._inference.close(desk)
            desk = old
        self._desks[info.digest] = desk
        self.active, self.active_digest = desk, info.digest
        self._remember(info.digest)
        fields = {"bundle": activation.name, "digest": info.digest[:12], "n_threads": info.n_threads}
        log.warning("bundle activated", extra=fields | {"variant": info.variant, "reason": info.reason})
        return activation

    def not_opened(self, desk: Desk) -> Activation | None:
        """Give up a bundle whose worker could not open it; returns the change that this ends."""
        self._inference.close(desk)
        for digest in [d for d, known in self._desks.items() if known is desk]:
            del self._desks[digest]
        activation = self.activation
        if activation is None or activation.desk is not desk:
            return None
        self.activation = None
        return activation

    def retire(self, in_use: set[str]) -> None:
        """End the workers of bundles that are neither active nor needed by an open stack."""
        for digest, desk in list(self._desks.items()):
            if digest not in in_use and digest != self.active_digest and not desk.n_waiting:
                del self._desks[digest]
                self._inference.close(desk)

    def _await(self, desk: Desk, on_progress: Callable[[], None]) -> str:
        """Return why a bundle cannot be served, empty once it is."""
        while True:
            on_progress()
            due_s = desk.next_due_s
            patience_s = 1.0 if due_s is None else max(0.0, min(1.0, due_s - time.monotonic()))
            select.select([self._inference], [], [], patience_s)
            for outcome in desk.advance(time.monotonic()):
                if isinstance(outcome, Opened):
                    self.opened(desk, outcome.bundle)
                    return ""
                if isinstance(outcome, NotOpened):
                    self.not_opened(desk)
                    return outcome.refused or outcome.reason

    def _open_first(self) -> Desk:
        """Open the bundle that was activated last, unless another one has been configured since."""
        folder = resolve_bundle(self._settings.bundle)
        if (key := self._settings.bundle_public_key) is not None:
            read_public_key(key)  # at a start a key that cannot be read is a faulty setting
        try:
            remembered = json.loads(self._state_dir.recall(ACTIVE_FILE) or "{}")
            if remembered.get("configured") == bundle_digest(read_manifest_bytes(folder)):
                found = self._find(remembered["digest"])
                if found is not None:
                    self._is_remembered = found.folder != folder
                    return self._open(found.folder, found.digest)
                log.error("the bundle that was activated last is gone; the configured one is served")
        except (ValueError, KeyError, AttributeError, BundleError):
            pass  # what is wrong with the configured bundle its worker will say
        return self._open(folder)

    def _remember(self, digest: str) -> None:
        try:
            configured = bundle_digest(read_manifest_bytes(resolve_bundle(self._settings.bundle)))
            text = json.dumps({"configured": configured, "digest": digest})
            self._state_dir.remember(ACTIVE_FILE, text)
        except (OSError, BundleError) as error:
            log.error("the active bundle cannot be remembered (%s): a restart will serve the other", error)

    def _open(
        self, folder: Path, digest: str = "", *, checked: bool = False, variant: VariantName | None = None
    ) -> Desk:
        """Start a worker on a bundle.

        Raises
        ------
        BundleError
            The public key cannot be read now, or no process can be started.
        """
        settings = self._settings
        try:
            public_key = read_public_key(key).hex() if (key := settings.bundle_public_key) is not None else ""
        except ConfigurationError as error:
            raise BundleError(str(error)) from error
        launch = Launch(
            str(folder),
            settings.provider,
            settings.n_threads,
            digest,
            checked,
            public_key=public_key,
            variant=variant or settings.variant,
            spin_us=settings.spin_us,
            rehearsal_share=settings.rehearsal_share,
        )
        try:
            return self._inference.open(launch, time.monotonic())
        except OSError as error:
            raise BundleError(f"no worker can be started for {folder} ({error.strerror})") from error

    def _find(self, digest: str) -> Candidate | None:
        shipped = _candidate(default_bundle_path())
        known = [*self._candidates(), *([shipped] if shipped is not None else [])]
        return next((c for c in known if digest in c.digests.values()), None)

    def _candidates(self) -> list[Candidate]:
        """Return the configured bundle and those of the bundle folder."""
        folders = [resolve_bundle(self._settings.bundle)]
        if (folder := self._settings.bundle_dir) is not None:
            try:
                folders += sorted(path for path in folder.expanduser().iterdir() if os.path.isdir(path))
            except OSError as error:
                log.error("the bundle folder cannot be read (%s)", error.strerror)
        return [found for path in folders if (found := _candidate(path)) is not None]


def _candidate(folder: Path) -> Candidate | None:
    try:
        data = read_manifest_bytes(folder)
        manifest = Manifest.parse(data, folder)
    except BundleError:
        return None
    digests = digests_of(manifest, bundle_digest(data))
    return Candidate(folder, f"{manifest.name}@{manifest.version}", digests)


@lru_cache(maxsize=16)
def _parameters(text: str) -> EstimatorParameters | None:
    return EstimatorParameters.model_validate_json(text) if text else None
