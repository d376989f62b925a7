"""`rcm-daemon replay` and its neighbours as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from stack_files import write_imagej, write_images, write_ome, write_plain, write_vivastack

from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.simulator import make_phantom

if TYPE_CHECKING:
    from pathlib import Path

N = 14


def rcm(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rcm_daemon", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(11, z_step_um=5.0)


@pytest.fixture(scope="module")
def stack(phantom):
    """Some slices across both boundaries of a phantom, 1000 x 1000."""
    chosen = np.linspace(0, len(phantom) - 1, N).astype(int)
    return np.stack([phantom.render(int(i)) for i in chosen])


@pytest.fixture(scope="module")
def forms(stack, tmp_path_factory):
    """The same stack, 5 um apart, in each of the five forms; with the options each one needs."""
    folder = tmp_path_factory.mktemp("forms")
    steps = ["--z-step-um", 5]
    return {
        "imagej": [write_imagej(folder / "imagej.tif", stack, spacing=5.0)],
        "ome": [write_ome(folder / "ome.ome.tif", stack, metadata={"PhysicalSizeZ": 5.0})],
        "plain": [write_plain(folder / "plain.tif", stack), *steps, "--pixel-size-um", 0.5],
        "images": [write_images(folder / "images", stack), *steps, "--pixel-size-um", 0.5],
        "vivastack": [write_vivastack(folder / "VivaStack #1", stack), *steps],
    }


@pytest.fixture(scope="module")
def replayed(forms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    finals = {}
    for form, words in forms.items():
        done = rcm(
            "replay", *words, "--json", "-", "--live-json", folder / form, "--csv", folder / f"{form}.csv"
        )
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        finals[form] = json.loads(line), folder
    return finals


def test_each_form_gives_the_same_answer(replayed):
    first, _ = replayed["imagej"]
    assert first["n_slices"] == N
    for form, (final, _) in replayed.items():
        assert final["label"] == first["label"], form
        assert np.abs(np.subtract(final["probability"], first["probability"])).max() < 1e-5
        assert np.allclose(np.diff(final["z_um"]), 5.0)
        assert (final["state"], final["instrument"], final["n_missing"]) == ("complete", "replay", 0)


def test_live_messages_equal_the_offline_network_on_every_prefix(replayed, stack):
    _, folder = replayed["imagej"]
    live = [json.loads(line) for line in (folder / "imagej").read_text().splitlines()]
    networks = Networks.open(load_verified(default_bundle_path()), "cpu")
    embeddings = networks.embed_many(stack)
    assert [message["n_slices"] for message in live] == list(range(1, N + 1))
    for message in live:
        n = message["n_slices"]
        expected = networks.label(embeddings[:n], np.arange(n) * 5.0, np.ones(n))
        assert np.abs(np.array(message["probability"]) - expected).max() < 1e-5
        assert message["state"] == "open"


def test_labelled_once_a_stack_ends_as_it_does_labelled_slice_by_slice(forms, replayed):
    """Without --live-json the recurrent network runs once a stack; nobody can tell by the result."""
    slice_by_slice, _ = replayed["imagej"]
    done = rcm("replay", *forms["imagej"], "--json", "-")
    once = json.loads(done.stdout)
    for message in (slice_by_slice, once):
        del message["time_s"], message["time_ns"]
    assert once == slice_by_slice


def test_a_12_bit_camera_is_asked_for_its_full_scale_and_read_by_it(replayed, stack, tmp_path):
    final, _ = replayed["imagej"]
    path = write_imagej(
        tmp_path / "imagej.tif", np.round(stack * (4095 / 255)).astype(np.uint16), spacing=5.0
    )
    unsaid = rcm("replay", path, "--json", "-")
    assert "16-bit slices of imagej have grey levels far below 65535" in unsaid.stderr
    said = rcm("replay", path, "--max-value", 4095, "--json", "-")
    assert said.stderr.count("rcm-daemon: ") == 0
    again = json.loads(said.stdout)
    assert again["label"] == final["label"]
    assert np.abs(np.subtract(again["probability"], final["probability"])).max() < 1e-5


def test_csv_has_a_row_a_slice(replayed):
    final, folder = replayed["ome"]
    with (folder / "ome.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == final["label"]
    assert [float(row["probability_dej"]) for row in rows] == [row[1] for row in final["probability"]]


def test_table_strip_and_boundaries_are_shown_and_the_picture_drawn(forms, tmp_path):
    done = rcm("replay", *forms["imagej"], "--plot", tmp_path / "stack.png", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    for expected in ("epidermis-DEJ", "DEJ-dermis", "dermis"):
        assert expected in done.stdout
    assert (tmp_path / "stack.png").read_bytes().startswith(b"\x89PNG")


def test_what_follows_a_stack_that_breaks_off_half_way_is_as_it_would_be_alone(forms, tmp_path):
    """Slices that had been read ahead of the one that cannot be read leave no trace."""
    whole = write_images(tmp_path / "broken", np.full((6, 64, 64), 90, np.uint8))
    files = sorted(whole.iterdir())
    files[3].write_bytes(files[3].read_bytes()[:60])
    scale = ["--z-step-um", 5, "--pixel-size-um", 0.5]
    good = forms["images"][0]
    after = rcm("replay", whole, good, *scale, "--json", "-")
    assert after.returncode == 1
    finals = [json.loads(line) for line in (after.stdout, rcm("replay", good, *scale, "--json", "-").stdout)]
    for final in finals:
        del final["time_s"], final["time_ns"], final["seq"]
    assert finals[0] == finals[1]


def test_a_bad_stack_among_good_ones_is_one_sentence_and_a_failure(forms, tmp_path):
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"no picture")
    done = rcm("replay", bad, forms["imagej"][0], "--json", "-")
    assert done.returncode == 1
    assert json.loads(done.stdout)["stack_id"] == "imagej"
    complaints = [line for line in done.stderr.splitlines() if line.startswith("rcm-daemon: ")]
    assert len(complaints) == 1
    assert str(bad) in complaints[0]


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    grey = np.zeros((3, 40, 40), np.uint8)
    cut = write_imagej(
        folder / "cut.tif", np.random.default_rng(0).integers(0, 255, (10, 64, 64), dtype=np.uint8)
    )
    cut.write_bytes(cut.read_bytes()[:20_000])
    mixed = write_images(folder / "mixed", grey)
    tifffile.imwrite(mixed / "slice9.tif", np.zeros((20, 20), np.uint8))
    tifffile.imwrite(folder / "rgb.tif", np.zeros((3, 40, 40, 3), np.uint8), photometric="rgb")
    (folder / "empty").mkdir()
    (folder / "text.tif").write_text("hello")
    return {
        "not a TIFF": (folder / "text.tif", "TIFF"),
        "RGB": (folder / "rgb.tif", "grey"),
        "cut short": (cut, "cut"),
        "no z spacing": (write_plain(folder / "plain.tif", grey), "--z-step-um"),
        "empty folder": (folder / "empty", "empty"),
        "mixed": (mixed, ""),
        "absent": (folder / "absent.tif", "absent.tif"),
    }


@pytest.mark.hazard("H57")
@pytest.mark.hazard("H60")
@pytest.mark.hazard("H62")
def test_bad_files_are_one_sentence_each(tmp_path):
    for name, (path, expected) in bad_files(tmp_path).items():
        done = rcm("replay", path)
        assert done.returncode != 0, name
        assert len(done.stderr.splitlines()) == 1, (name, done.stderr)
        assert done.stderr.startswith("rcm-daemon: ")
        assert expected in done.stderr, (name, done.stderr)
        assert str(path) in done.stderr, (name, done.stderr)


def test_default_bundle_passes_its_check():
    done = rcm("check")
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout


def test_check_of_no_bundle(tmp_path):
    done = rcm("check", tmp_path)
    assert done.returncode == 1


def test_schema_prints_every_schema():
    assert set(json.loads(rcm("schema").stdout)) >= {"rcm-slice-1.slice", "rcm-strata-1", "settings"}


def test_version():
    assert rcm("--version").stdout.startswith("rcm-daemon ")
