"""What the bench reads off the times it measured."""

from __future__ import annotations

import pytest

from rcm_daemon.bench.measured import Measured
from rcm_daemon.bench.report import report_lines
from rcm_daemon.bench.timings import Sample, median_by_length, near, summarise

PARTS = {"wait_ms": 1.0, "embed_ms": 8.0, "label_ms": 2.0, "total_ms": 11.0}


def measured_run(n_slices=20, growth_ms=0.1):
    """Two rounds of a daemon that takes 12 ms and `growth_ms` a slice more, over a bare CNN of 8 ms."""
    machine = {"cpu": "x", "n_cores": 2, "n_cores_allowed": 2, "gpu": "", "load_average": [0.0, 0.0, 0.0]}
    bundle = {"name": "tiny", "version": "1", "digest": "d" * 64}
    options = {"fps": 10.0, "n_rounds": 2, "n_slices": n_slices, "n_instruments": 3, "side_px": 64}
    about = {"machine": machine, "bundle": bundle, "options": options}
    how = {"provider": "cpu", "variant": "fp32", "n_threads": 1}
    measured = Measured({**about, **how, "versions": {"python": "3"}})
    measured.bare_hot_ms = [5.0, 7.0]
    for pace in (measured.at_frame_rate, measured.back_to_back):
        for _ in range(2):
            for n in range(1, n_slices + 1):
                pace.note_answer(Sample(n, 12.0 + growth_ms * n), PARTS)
                pace.note_rival("bare", 8.0)
        pace.fps.append(10.0)
    return measured


def test_the_daemon_is_compared_with_a_cnn_that_never_pauses_too():
    found = measured_run().fields()["bare_over_and_over"]
    assert found["p50_ms"] == 6.0
    assert found["end to end - this, p50 ms"] == pytest.approx(12.0 + 0.1 * 10.5 - 6.0)


def test_percentiles_lie_between_the_times_and_the_first_is_the_first():
    times = [50.0, *map(float, range(1, 100))]
    summary = summarise(times)
    assert (summary.n, summary.first_ms, summary.max_ms) == (100, 50.0, 99.0)
    assert summary.p50_ms == pytest.approx(50.0, abs=0.5)
    assert summary.p50_ms < summary.p95_ms < summary.p99_ms < summary.max_ms


def test_stacks_of_about_a_length_are_told_from_others():
    samples = [Sample(n, float(n)) for n in range(1, 11)]
    assert near(samples, 5, 1) == [4.0, 5.0, 6.0]
    assert median_by_length([Sample(2, 1.0), Sample(1, 5.0), Sample(2, 3.0)]) == [
        Sample(1, 5.0),
        Sample(2, 2.0),
    ]


def test_what_is_beyond_the_bare_cnn_and_how_it_grows_are_read_off_one_run():
    fields = measured_run().fields()
    ratios = fields["at_frame_rate"]["ratios"]
    end_to_end = fields["at_frame_rate"]["end_to_end"]
    assert ratios["end to end - bare, p50 ms"] == pytest.approx(end_to_end["p50_ms"] - 8.0)
    assert ratios["end to end at 20 - at 5 slices, p50 ms"] == pytest.approx(0.1 * (16 - 5))
    assert ratios["end to end at 20 - at 12 slices, p50 ms"] == pytest.approx(0.1 * (16 - 12))
    assert fields["at_frame_rate"]["parts"]["transport_ms"]["p50_ms"] == pytest.approx(2.05)


def test_the_script_is_compared_with_the_daemon_at_its_longest_stack():
    measured = measured_run(growth_ms=0.0)
    measured.script = [Sample(5, 60.0), Sample(15, 240.0), Sample(15, 240.0)]
    script = measured.fields()["script"]
    assert script["n_slices"] == 15
    assert script["script / end to end, p50"] == pytest.approx(20.0)


def test_a_short_stack_says_nothing_of_flatness():
    ratios = measured_run(n_slices=8).fields()["at_frame_rate"]["ratios"]
    assert not any("slices" in name for name in ratios)


def test_what_could_not_be_measured_is_said_plainly():
    measured = measured_run()
    measured.notes.append("torch was not measured: it is not installed here")
    assert report_lines(measured.fields())[-1] == "note: torch was not measured: it is not installed here"


def test_what_may_have_been_disturbed_is_said():
    measured = measured_run()
    assert not any("may rehearse" in note for note in measured.fields()["notes"])
    measured.n_in_rehearsals = 3
    assert "note: after 3 slices at the frame rate something else still ran" in "\n".join(
        report_lines(measured.fields())
    )
