"""`rcm-daemon bench` at a tiny size: real processes, real sockets, and figures that fit together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_bundle import write_bundle

SUMMARY = {"n", "first_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"}


@pytest.mark.timeout(600)
def test_it_measures_daemon_bare_cnn_and_script_in_one_run(tmp_path):
    write_bundle(tmp_path / "bundle", kind="whole")
    found, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    command = [
        sys.executable,
        "-m",
        "rcm_daemon",
        "bench",
        "--bundle",
        tmp_path / "bundle",
        "--provider",
        "cpu",
    ]
    command += ["--fps", "50", "--slices", "14", "--rounds", "2", "--size", "64"]
    done = subprocess.run(
        [*command, "--json", found, "--plot", picture],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "end to end - bare, p50 ms" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    fields = json.loads(found.read_text())
    for pace in (fields["at_frame_rate"], fields["back_to_back"]):
        assert set(pace["end_to_end"]) == set(pace["bare"]) == SUMMARY
        assert pace["end_to_end"]["n"] == 28
        # Where time is short between slices, one after the other has its turn.
        turns = [pace[name]["n"] for name in ("bare", "transport alone", "one process")]
        assert turns == [28] * 3 or (pace is fields["at_frame_rate"] and min(turns) >= 6)
        beyond_ms = pace["ratios"]["end to end - bare, p50 ms"] - pace["transport alone"]["p50_ms"]
        assert pace["ratios"]["end to end - bare - transport alone, p50 ms"] == pytest.approx(beyond_ms)
        one_process, bare, end_to_end = (
            pace[name]["p50_ms"] for name in ("one process", "bare", "end_to_end")
        )
        assert pace["ratios"]["one process - bare, p50 ms"] == pytest.approx(one_process - bare)
        assert pace["ratios"]["end to end - one process, p50 ms"] == pytest.approx(end_to_end - one_process)
        parts = pace["parts"]
        assert parts["total_ms"]["p50_ms"] <= pace["end_to_end"]["p50_ms"]
        assert all(parts[f"{part}_ms"]["max_ms"] > 0 for part in ("wait", "embed", "label", "transport"))
    assert fields["at_frame_rate"]["fps"] > 0
    assert fields["bare_over_and_over"]["n"] == 2 * 10
    assert "bare, over and over" in done.stdout
    assert 0 <= fields["script"]["largest_difference"] <= 1e-5
    assert fields["script"]["n_slices"] == 5
    assert fields["together"]["n_lost"] == 0
    assert fields["together"]["end_to_end"]["n"] == 2 * 3 * 14
    rates = fields["archive"]["slices_per_s"]
    assert set(rates) == {"replay", *(f"batches of {size}" for size in (1, 2, 4, 8))}  # of 14 slices
    batched = [rate for name, rate in rates.items() if name != "replay"]
    assert fields["archive"]["ratios"] == {"replay / best batches": rates["replay"] / max(batched)}
    assert [n for n, _ in fields["by_stack_length"]["end_to_end"]] == list(range(1, 15))
    light = fields["lightness"]
    assert 0 < light["resident_shared_once_mb"] <= light["resident_mb"] < 300
    assert all(light[key] > 0 for key in ("start_to_ready_s", "help_s", "import_s"))
    assert 0 <= light["idle_cpu_share"] < 1
    assert light["installed_mb"] == pytest.approx(sum(light["installed_mb_by_package"].values()))
    assert {"onnxruntime-gpu", "onnxruntime"} & set(light["installed_mb_by_package"])
    assert any(note.startswith("torch was not measured") for note in fields["notes"])


def test_a_bundle_that_cannot_be_loaded_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "rcm_daemon", "bench", "--bundle", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
