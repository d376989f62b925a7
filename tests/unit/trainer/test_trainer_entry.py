from __future__ import annotations

import subprocess
import sys

import pytest
from trainer_commands import run
from typer.testing import CliRunner

from rcm_daemon import __version__
from rcm_daemon.errors import DataSetError
from trainer.cli import app

WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Missing(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "torch" else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not PathFinder] + [Missing]
from trainer.entry import main
main()
"""


def test_without_its_packages_one_sentence_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == 'rcm-trainer needs torch: install it with pip install "rcm-daemon[trainer]"\n'


@pytest.mark.parametrize("command", ["", "phantom", "cnn", "rcn", "export", "evaluate"])
def test_help_needs_no_torch(command: str) -> None:
    code = (
        "import sys; from trainer.cli import app\n"
        f"try: app([*{command!r}.split(), '--help'])\n"
        "finally: assert not {'torch', 'onnx', 'sklearn', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version") == f"rcm-trainer {__version__}\n"


def test_a_refusal_is_one_sentence_without_a_traceback(tmp_path) -> None:
    code = "import sys; from trainer.cli import run; sys.argv = ['rcm-trainer', *sys.argv[1:]]; run()"
    command = ["cnn", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("rcm-trainer: a data set needs a manifest in CSV or Parquet")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        *("--epochs 0", "--batch-size 0", "--learning-rate -1", "--width 0", "--size 60", "--dropout 1.5"),
        "--threads -1",
    ],
)
def test_an_option_out_of_range_is_refused_before_anything_is_read(option: str) -> None:
    result = CliRunner().invoke(app, ["cnn", "--data", "nowhere", "--out", "nowhere", *option.split()])
    assert result.exit_code == 2
    assert f"Invalid value for '{option.split()[0]}'" in result.output


def test_a_kind_of_augmentation_that_is_none_is_refused_before_anything_is_read() -> None:
    with pytest.raises(DataSetError, match=r"an augmentation must be one of rotation, .*, got foo"):
        run("cnn", "--data", "nowhere", "--out", "nowhere", "--without", "foo")
