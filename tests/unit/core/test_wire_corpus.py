"""Recorded damage, some of every kind, parses or raises the one error, and still the same one.

`PYTHONPATH=tests python tests/unit/core/test_wire_corpus.py` records it anew.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from wire_fuzz import damaged, pack, read_corpus, whole_messages

from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.wire import parse

FOLDER = Path(__file__).parent / "wire_corpus"
CORPUS = read_corpus(FOLDER)


def verdict(frames):
    try:
        return type(parse(frames)).__name__.lower()
    except Rejection as rejection:
        str(rejection).encode("ascii")
        return rejection.rule.name.lower()


@pytest.mark.parametrize("name", CORPUS)
def test_replay(name):
    assert verdict(CORPUS[name]) == name.partition("-")[0]


def test_the_corpus_breaks_every_rule_of_the_wire_and_none():
    found = {name.partition("-")[0] for name in CORPUS}
    wire_rules = {rule.name.lower() for rule in Rule if rule.value < 200}
    assert found == wire_rules | {"slice", "stackstart", "stackend", "heartbeat"}


def test_no_seed_finds_another_error():
    whole, random_ = whole_messages(), random.Random(3)  # noqa: S311
    seen = {verdict(damaged(random_, whole)) for _ in range(5_000)}
    assert len(seen) > 10


def record(n: int, n_each: int) -> None:
    """Record up to `n_each` messages of each verdict out of `n` damaged ones, one of them if it is large."""
    FOLDER.mkdir(exist_ok=True)
    whole, random_ = whole_messages(), random.Random(1)  # noqa: S311
    counts: dict[str, int] = {}
    for _ in range(n):
        frames = damaged(random_, whole)
        which = verdict(frames)
        if counts.get(which, 0) < (n_each if sum(map(len, frames)) < 2_000 else 1):
            counts[which] = counts.get(which, 0) + 1
            (FOLDER / f"{which}-{counts[which]}.bin").write_bytes(pack(frames))


if __name__ == "__main__":
    record(200_000, 4)
