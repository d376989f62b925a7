"""Which form of a CNN runs: the one asked for, or the fastest that computes here what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_bundle import FIELD, SIZE, add_int8, write_bundle

from rcm_daemon.bundle import processor, variants
from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.execution import Execution
from rcm_daemon.bundle.manifest import Manifest, variant_digest
from rcm_daemon.bundle.provider import open_session
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = np.random.default_rng(5).integers(0, 255, FIELD).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", kind="whole")
    add_int8(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processor multiply int8, whatever the machine of this test is."""
    monkeypatch.setattr(variants, "has_int8_products", lambda: True)


def opened(folder: Path, variant: str, **options: int) -> Networks:
    return Networks.open(load_verified(folder), "cpu", variant=variant, **options)  # type: ignore[arg-type]


def test_a_variant_is_another_network_with_a_digest_of_its_own(folder: Path) -> None:
    fp32, int8 = opened(folder, "fp32"), opened(folder, "int8")
    assert np.allclose(int8.embed(IMAGE) - fp32.embed(IMAGE), 0.25, atol=1e-4)
    bundle = load_verified(folder)
    assert (fp32.variant, fp32.digest) == ("fp32", bundle.digest)
    assert (int8.variant, int8.digest) == ("int8", variant_digest(bundle.digest, "int8"))
    assert int8.digest not in (fp32.digest, variant_digest(bundle.digest, "fp16"))


@pytest.mark.parametrize(("int8_s", "chosen"), [(0.9, "int8"), (0.94, "int8"), (0.96, "fp32"), (2.0, "fp32")])
def test_auto_takes_what_was_clearly_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch, int8_s: float, chosen: str
) -> None:
    monkeypatch.setattr(variants, "measure", lambda cnns, *_: {"fp32": 1.0, "int8": int8_s})
    networks = opened(folder, "auto")
    assert networks.variant == chosen
    assert networks.reason == f"fp32 1000.00 ms, int8 {1e3 * int8_s:.2f} ms"


def test_auto_runs_one_of_them_as_measured_here(folder: Path) -> None:
    networks = opened(folder, "auto")
    assert networks.variant in ("fp32", "int8")
    assert networks.reason.count(" ms") == 2
    assert np.array_equal(networks.embed(IMAGE), opened(folder, networks.variant).embed(IMAGE))


def test_each_is_judged_by_its_fastest_run_after_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now_s = 0.0

        def perf_counter(self) -> float:
            return self.now_s

        process_time = perf_counter

    class Fake:
        def __init__(self, durations_s: list[float]) -> None:
            self.left = durations_s

        def run(self, batch: np.ndarray) -> np.ndarray:
            clock.now_s += self.left.pop(0)
            return np.zeros(SIZE, np.float32)

    clock = Clock()
    monkeypatch.setattr(variants, "time", clock)
    fp32, int8 = Fake([0.01, 0.3, 0.2, 0.4, 9.0]), Fake([0.001, 0.5, 0.5, 0.1, 9.0])
    cnns = {"fp32": fp32, "int8": int8}
    found = variants.measure(cnns, IMAGE, SIZE)  # type: ignore[arg-type]
    assert found == pytest.approx({"fp32": 0.2, "int8": 0.1})
    assert len(fp32.left) == len(int8.left) == 1  # three rounds, since they took longer than enough


def test_without_int8_instructions_auto_does_not_look_at_int8(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "has_int8_products", lambda: False)
    monkeypatch.setattr(variants, "measure", lambda *_: pytest.fail("measured"))
    assert opened(folder, "auto").variant == "fp32"
    assert opened(folder, "int8").variant == "int8"  # who asks for it gets it, if it computes what it must


def test_a_variant_that_computes_something_else_here_is_refused_and_auto_goes_without(tmp_path: Path) -> None:
    write_bundle(tmp_path, kind="whole")
    add_int8(tmp_path, bias=0.25, golden_bias=0.5)
    with pytest.raises(BundleError, match="int8 embeddings of bundle tiny must be the golden ones on cpu"):
        opened(tmp_path, "int8")
    networks = opened(tmp_path, "auto")
    assert networks.variant == "fp32"
    assert networks.reason.startswith("int8 left out: int8 embeddings of bundle tiny must be")
    report = check_bundle(tmp_path, "cpu")
    assert [item.what for item in report.items if not item.ok] == ["variant int8"]


def test_a_variant_the_bundle_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="must hold a variant to run it, got fp16, it holds fp32, int8"):
        opened(folder, "fp16")


def test_check_verifies_every_variant(folder: Path) -> None:
    report = check_bundle(folder, "cpu")
    assert report.ok, report
    item = report.items[-1]
    assert item.what == "variant int8"
    assert "accuracy 0.8900 instead of 0.9000, the same label in 97.00% of 100" in item.detail
    assert opened(folder, "int8").digest[:12] in item.detail


def test_a_manifest_lists_the_files_of_its_variants(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    assert Manifest.load(folder).variants["int8"].network == "cnn.int8.onnx"
    del document["files"]["golden.int8.npz"]
    with pytest.raises(BundleError, match=r"files must list golden\.int8\.npz, which variants name"):
        Manifest.parse(json.dumps(document).encode(), folder)
    del document["variants"]  # bundles from before there were variants have none
    assert Manifest.parse(json.dumps(document).encode(), folder).variants == {}
    (folder / "cnn.int8.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"cnn\.int8\.onnx has"):
        load_verified(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni\nflags\t\t: fpu avx512f avx512_vnni\n", True),
        ("flags : fpu avx2 avx_vnni\n", True),
        ("flags : fpu avx2 avx512f\n", False),
        ("flags : fpu avx_vnni\nflags : fpu avx2\n", False),  # one core of two cannot
        ("Features\t: fp asimd asimddp\n", True),
        ("Features\t: fp asimd\n", False),
        ("flags : not_avx_vnni_at_all\n", False),
        ("model name : avx_vnni\n", False),
        ("", False),
    ],
)
def test_int8_instructions_are_read_off_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: bool
) -> None:
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    assert not processor.has_int8_products()  # where nothing says so
    (tmp_path / "cpuinfo").write_text(text)
    assert processor.has_int8_products() is expected


def test_two_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPU_FOLDER", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert processor.n_cores() == 3
    for cpu, siblings in ((0, "0,2"), (1, "1,3"), (2, "0,2")):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{siblings}\n")
    assert processor.n_cores() == 2
    assert (Execution(n_threads=0).threads, Execution(n_threads=5).threads) == (2, 5)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_cores_kept_from_the_process_get_no_thread(folder: Path) -> None:
    code = (
        "import os, sys\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from rcm_daemon.bundle.sessions import Networks\n"
        "from rcm_daemon.bundle.verify import load_verified\n"
        "import onnxruntime\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "Networks.open(load_verified(sys.argv[1]), 'cpu')\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize(("spin_us", "spins"), [(0, "0"), (75, "")])
def test_threads_spin_as_long_as_they_are_told(folder: Path, spin_us: int, spins: str) -> None:
    session = open_session((folder / "cnn.onnx").read_bytes(), "cnn.onnx", "cpu", 2, spin_us)
    options = session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == str(spin_us)
    if spins:
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins


def test_threads_that_do_not_spin_compute_the_same(folder: Path) -> None:
    expected = opened(folder, "fp32", n_threads=1).embed(IMAGE)
    assert np.allclose(opened(folder, "fp32", n_threads=2, spin_us=0).embed(IMAGE), expected, atol=1e-5)
