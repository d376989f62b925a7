"""Metrics as Prometheus reads them: every rule there from the start, nothing a controller could name."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rcm_daemon.core.message import Latency
from rcm_daemon.core.rejection import Rule
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.metrics import Metrics

HEALTH = {
    "ready": True,
    "n_messages": 9,
    "n_slices": 7,
    "n_cnn_runs": 6,
    "n_worker_restarts": 1,
    "n_lost": 2,
    "n_waiting": 3,
    "n_open_stacks": 1,
    "rejected_rule": ["CRC_MISMATCH", "OLD_RUN"],
    "rejected_count": [4, 5],
    "refused_connection": ["results/key_refused"],
    "refused_count": [8],
    "daemon_version": "1.2.3",
    "bundle_name": "tiny",
    "bundle_digest": "0" * 64,
    "provider": "cpu",
    "variant": "fp32",
}
LABELS = {
    "rule",
    "socket",
    "reason",
    "part",
    "le",
    "daemon_version",
    "bundle_name",
    "bundle_digest",
    "provider",
    "variant",
}
PLATFORM = {"python_info", "process_"}


@pytest.fixture
def metrics():
    metrics = Metrics("127.0.0.1:0")
    yield metrics
    metrics.close()


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_health_and_latency_are_shown(metrics):
    metrics.show(HEALTH)
    for total_ms in (20.0, 80.0):
        metrics.observe(Latency(wait_ms=1, embed_ms=15, label_ms=2, total_ms=total_ms))
    found = scrape(metrics.port)
    for name, value in (
        ("rcm_ready", 1),
        ("rcm_messages_total", 9),
        ("rcm_slices_total", 7),
        ("rcm_cnn_runs_total", 6),
        ("rcm_worker_restarts_total", 1),
        ("rcm_messages_lost", 2),
        ("rcm_slices_waiting", 3),
        ("rcm_open_stacks", 1),
    ):
        assert found[name, ()] == value, name
    rejected = {labels[0][1]: n for (name, labels), n in found.items() if name == "rcm_rejections_total"}
    assert rejected.keys() == {rule.name.lower() for rule in Rule}
    assert {rule: n for rule, n in rejected.items() if n} == {"crc_mismatch": 4, "old_run": 5}
    refused = ("rcm_connections_refused_total", (("reason", "key_refused"), ("socket", "results")))
    assert found[refused] == 8
    assert found["rcm_slice_latency_seconds_sum", (("part", "total"),)] == pytest.approx(0.1)
    assert found["rcm_slice_latency_seconds_bucket", (("le", "0.025"), ("part", "total"))] == 1
    assert found["rcm_slice_latency_seconds_count", (("part", "wait"),)] == 2
    (info,) = [dict(labels) for (name, labels) in found if name == "rcm_daemon_info"]
    told = ("daemon_version", "bundle_name", "bundle_digest", "provider", "variant")
    assert info == {key: HEALTH[key] for key in told}


def test_no_label_can_be_filled_in_by_a_controller(metrics):
    metrics.show(HEALTH)
    for name, labels in scrape(metrics.port):
        if not any(name.startswith(prefix) for prefix in PLATFORM):
            assert {key for key, _ in labels} <= LABELS, name


def test_nothing_is_shown_before_anything_is_known(metrics):
    assert not any(name.startswith("rcm_ready") for name, _ in scrape(metrics.port))


def test_a_port_in_use_is_a_fault_of_the_configuration():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="Address already in use"):
            Metrics(f"127.0.0.1:{taken.getsockname()[1]}")
