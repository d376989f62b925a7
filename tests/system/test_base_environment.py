"""The daemon's own environment: what is installed without extras must be enough, and torch is not in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from rcm_daemon.simulator import make_phantom

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A Python with rcm-daemon and no extras: the one `make test` made, else one made here."""
    given = os.environ.get("BASE_PYTHON", "")
    if given and Path(given).exists():
        return Path(given)
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    install = [folder / "bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "-e", ROOT]
    subprocess.run(install, check=True)
    return folder / "bin/python"


def run(base, *words):
    return subprocess.run([base, *words], capture_output=True, text=True, timeout=300, check=False)


def program(base, name):
    return base.parent / name


@pytest.mark.timeout(600)
def test_torch_is_not_installed(base):
    assert run(base, "-c", "import torch").returncode != 0
    assert run(base, "-c", "import onnx").returncode != 0


def test_no_module_of_the_daemon_imports_torch():
    listing = (
        "import pkgutil, importlib, sys, rcm_daemon\n"
        "for m in pkgutil.walk_packages(rcm_daemon.__path__, 'rcm_daemon.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "print(sorted({'torch', 'onnx', 'sklearn', 'trainer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_trainer_says_what_to_install(base):
    done = subprocess.run([program(base, "rcm-trainer"), "cnn"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "rcm-daemon[trainer]" in done.stderr


def test_openvino_is_an_extra_and_the_daemon_says_so(base):
    done = run(program(base, "rcm-daemon"), "check", "--provider", "openvino")
    assert done.returncode == 1
    assert (
        "FAIL networks: provider openvino needs the package openvino, but it is not installed" in done.stdout
    )
    assert "rcm-daemon[openvino]" in done.stdout


def test_the_demo_finds_both_boundaries(base, tmp_path):
    plot = tmp_path / "demo.png"
    done = subprocess.run(
        [program(base, "rcm-daemon"), "demo", "--plot", plot],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pattern = r"([0-9.]+) um \(90 %: ([0-9.]+) to ([0-9.]+)\), truth ([0-9.]+) um, off by ([+-][0-9.]+) um"
    found = [tuple(map(float, groups)) for groups in re.findall(pattern, done.stdout)]
    assert len(found) == 2, done.stdout
    for um, low_um, high_um, truth_um, off_um in found:
        assert low_um <= um <= high_um
        assert low_um <= truth_um <= high_um
        assert high_um - low_um < 60.0  # half of them are narrower than 25 and 35 um
        assert off_um == pytest.approx(um - truth_um, abs=0.11)
    # The same phantom and bundle each time; its DEJ-dermis is a hard one.
    assert [depths[0] for depths in found] == pytest.approx([17.9, 77.3], abs=0.5)
    assert [depths[3] for depths in found] == pytest.approx([22.1, 60.3], abs=0.1)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_help_and_replay(base, tmp_path):
    assert "replay" in run(program(base, "rcm-daemon"), "--help").stdout
    import cv2

    phantom = make_phantom(3)
    folder = tmp_path / "stack"
    folder.mkdir()
    for i in range(4):
        cv2.imwrite(str(folder / f"{i}.png"), phantom.render(i))
    scale = ["--z-step-um", "3", "--pixel-size-um", "0.5"]
    done = run(program(base, "rcm-daemon"), "replay", str(folder), *scale, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_slices"] == 4
