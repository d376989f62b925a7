"""Metrics of a running daemon, and the dashboard over them."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
from harness import Daemon, free_endpoint
from prometheus_client.parser import text_string_to_metric_families
from sender import Sender, picture
from tiny_bundle import FIELD, write_bundle
from unit_file import ROOT

NAME = "Anna Mueller #3"


@pytest.fixture
def bind():
    return free_endpoint().removeprefix("tcp://")


@pytest.fixture
def daemon(tmp_path, bind):
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", kind="whole", version="1.0.0")
    daemon = Daemon(tmp_path, tmp_path / "bundle", RCM_METRICS_BIND=bind)
    yield daemon
    assert daemon.stop() == 0


def scrape(bind):
    with urllib.request.urlopen(f"http://{bind}/metrics", timeout=30) as answer:
        return answer.read().decode()


def samples(text):
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_stack_shows_in_metrics_but_not_its_name(daemon, bind):
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    for frames in (
        sender.start(NAME, 3, FIELD),
        sender.slice(NAME, 0, picture(0, FIELD)),
        sender.slice(NAME, 1, picture(1, FIELD), crc32=1),
        sender.slice(NAME, 2, picture(2, FIELD)),
    ):
        controller.send_multipart(frames)
    results.until(n_slices=2)
    found = {}
    while found.get(("rcm_slices_total", ())) != 2:  # renewed once a second
        text = scrape(bind)
        found = samples(text)
    assert found["rcm_rejections_total", ("crc_mismatch",)] == 1
    assert found["rcm_slice_latency_seconds_count", ("total",)] >= 1
    assert found["rcm_messages_total", ()] == 4
    assert not re.search(r"Anna|Mueller|run-1|m1", text)


def test_the_dashboard_shows_metrics_that_there_are(daemon, bind):
    while ("rcm_ready", ()) not in (found := samples(text := scrape(bind))):
        pass
    assert text
    names = {name for name, _ in found} | {"rcm_connections_refused_total"}
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"\b(?:rcm|process)_[a-z_]+", target["expr"]))
    assert len(asked) > 10
    assert asked <= names
