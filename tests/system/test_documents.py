"""What is generated and committed is what the code says now; what the README shows runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from rcm_daemon import __version__
from rcm_daemon.schemas import schemas

ROOT = Path(__file__).parents[2]


def test_schemas_are_fresh():
    committed = {path.stem: json.loads(path.read_text()) for path in (ROOT / "deploy/schemas").glob("*.json")}
    assert committed == schemas(), "run `make docs`"


def test_command_line_reference_is_fresh():
    done = subprocess.run(
        [sys.executable, "-m", "tests.command_line"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs/command-line.md").read_text() == done.stdout, "run `make docs`"


def test_changelog_knows_this_version():
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_shows_the_two_commands_first():
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [block.strip() for block in blocks[:2]] == ["make demo", "make test"]


def snippet(name: str) -> str:
    readme = (ROOT / "README.md").read_text()
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert found
    return found[1]


def test_snippets_are_short():
    assert len(snippet("publisher").splitlines()) <= 30
    assert len(snippet("subscriber").splitlines()) <= 15
    assert len(snippet("client").splitlines()) <= 15


def test_the_readmes_client_stores_a_stack(tmp_path):
    from harness import Daemon, free_endpoint

    from rcm_daemon.bundle.location import default_bundle_path

    endpoint = free_endpoint()
    daemon = Daemon(tmp_path, default_bundle_path(), "--ingest-bind", endpoint)
    program = tmp_path / "client.py"
    program.write_text(snippet("client").replace("tcp://127.0.0.1:6783", endpoint))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "12 of 12 messages stored\n"
    state = daemon.ask({"htype": "get_state", "stack_id": "first stack"})["stacks"][0]
    assert (state["state"], state["n_slices"]) == ("complete", 10)
    assert daemon.stop() == 0


def test_the_readmes_publisher_and_subscriber_talk_through_the_daemon(tmp_path):
    from harness import Daemon

    from rcm_daemon.bundle.location import default_bundle_path

    daemon = Daemon(tmp_path, default_bundle_path())
    programs = {}
    for name in ("subscriber", "publisher"):
        text = snippet(name).replace("tcp://127.0.0.1:6780", daemon.slices)
        programs[name] = tmp_path / f"{name}.py"
        programs[name].write_text(text.replace("tcp://127.0.0.1:6781", daemon.results))
    subscriber = subprocess.Popen([sys.executable, programs["subscriber"]], stdout=subprocess.PIPE, text=True)
    publisher = subprocess.Popen([sys.executable, programs["publisher"]])
    try:
        printed, _ = subscriber.communicate(timeout=60)
        assert publisher.wait(30) == 0
    finally:
        subscriber.kill()
        publisher.kill()
    lines = printed.splitlines()
    assert lines[-1].startswith("first stack complete 10 ")
    assert subscriber.returncode == 0
    assert daemon.stop() == 0
