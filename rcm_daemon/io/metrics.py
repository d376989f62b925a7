"""Prometheus metrics over HTTP: what `get_health` answers, and how long slices took.

No metric has a label that a controller could fill in: no stack, no instrument, no run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from rcm_daemon.core.rejection import Rule
from rcm_daemon.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from rcm_daemon.core.message import Latency

LATENCY_PARTS = ("wait", "embed", "label", "total")
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_COUNTERS = {
    "n_messages": ("rcm_messages", "Messages received, refused ones included."),
    "n_slices": ("rcm_slices", "Well-formed slices received."),
    "n_cnn_runs": ("rcm_cnn_runs", "Slices embedded."),
    "n_worker_restarts": ("rcm_worker_restarts", "Worker processes that had to be replaced."),
}
_GAUGES = {
    "ready": ("rcm_ready", "1 while slices and connections are taken."),
    "n_lost": (
        "rcm_messages_lost",
        "Messages of the present runs known to be lost; falls when one comes late.",
    ),
    "n_waiting": ("rcm_slices_waiting", "Slices received and neither labelled nor refused."),
    "n_open_stacks": ("rcm_open_stacks", "Stacks being acquired."),
}


class _Health(Collector):
    """Shows the newest answer to `get_health` that it was given."""

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}

    def collect(self) -> Iterator[Metric]:
        shown = self.shown
        if not shown:
            return
        for key, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, shown[key])
        for key, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, float(shown[key]))
        rejected = CounterMetricFamily("rcm_rejections", "Messages and slices refused.", labels=["rule"])
        counts = dict(zip(shown["rejected_rule"], shown["rejected_count"], strict=True))
        for rule in Rule:
            rejected.add_metric([rule.name.lower()], counts.get(rule.name, 0))
        yield rejected
        refused = CounterMetricFamily(
            "rcm_connections_refused", "Connections refused.", labels=["socket", "reason"]
        )
        for which, count in zip(shown["refused_connection"], shown["refused_count"], strict=True):
            refused.add_metric(which.split("/"), count)
        yield refused
        keys = ("daemon_version", "bundle_name", "bundle_digest", "provider", "variant")
        yield InfoMetricFamily("rcm_daemon", "What is served.", {key: shown[key] for key in keys})


class Metrics:
    """Serves metrics at `host:port` until closed.

    Raises
    ------
    ConfigurationError
        The port cannot be bound.
    """

    def __init__(self, bind: str) -> None:
        host, _, port = bind.rpartition(":")
        registry = CollectorRegistry()
        self._health = _Health()
        registry.register(self._health)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        latency = Histogram(
            "rcm_slice_latency_seconds",
            "From the receipt of a result's newest slice to the result, in parts.",
            ["part"],
            registry=registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self._parts = [latency.labels(part) for part in LATENCY_PARTS]
        try:
            self._server, self._thread = start_http_server(
                int(port), host.removeprefix("[").removesuffix("]"), registry
            )
        except OSError as error:
            raise ConfigurationError([f"metrics cannot be bound to {bind}: {error.strerror}"]) from error

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def show(self, health: dict[str, Any]) -> None:
        """Show this answer to `get_health` from now on; never changed afterwards."""
        self._health.shown = health

    def observe(self, latency: Latency) -> None:
        """Count the latency of one result's newest slice."""
        values_ms = (latency.wait_ms, latency.embed_ms, latency.label_ms, latency.total_ms)
        for part, value_ms in zip(self._parts, values_ms, strict=True):
            part.observe(value_ms / 1e3)

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
