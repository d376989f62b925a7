"""The wire's promise, parse or raise the one error, over a million damaged messages."""

from __future__ import annotations

import random

import pytest
from wire_fuzz import damaged, whole_messages

from rcm_daemon.core.rejection import Rejection
from rcm_daemon.core.wire import parse

N = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [random.SystemRandom().randrange(2**32)])
def test_damaged_bytes_parse_or_raise_the_one_error(seed):
    """Another seed each time; it stands in the test's name, so that what it finds can be found again."""
    random_, whole = random.Random(seed), whole_messages()  # noqa: S311  # damage, not secrets
    n_parsed = 0
    for _ in range(N):
        try:
            parse(damaged(random_, whole))
            n_parsed += 1
        except Rejection as rejection:
            str(rejection).encode("ascii")
    assert N / 20 < n_parsed < N / 2
