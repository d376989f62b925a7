"""The wire's promise, parse or raise the one error, over many damaged messages."""

from __future__ import annotations

import random

import pytest
from sender import Sender, picture

from rcm_daemon.core.rejection import Rejection
from rcm_daemon.core.wire import parse

N = 300_000


@pytest.mark.slow
def test_damaged_bytes_parse_or_raise_the_one_error():
    random_ = random.Random(7)  # noqa: S311  # damage, not secrets
    sender = Sender()
    whole = [
        sender.slice("s", 1, picture(1, (4, 4))),
        sender.start("s", 3),
        sender.end("s", 3),
        sender.heartbeat("s"),
    ]
    n_parsed = 0
    for _ in range(N):
        frames = [bytearray(frame) for frame in random_.choice(whole)]
        for _ in range(random_.randint(0, 3)):
            frame = random_.choice(frames)
            if not frame:
                continue
            at = random_.randrange(len(frame))
            how = random_.randrange(4)
            if how == 0:
                frame[at] = random_.randrange(256)
            elif how == 1:
                del frame[at : at + random_.randint(1, 9)]
            elif how == 2:
                frame[at:at] = random_.choice(
                    [b'"', b"{", b"[", b"}", b"null", b"1e999", b"-", b"\\u0000", b"NaN"]
                )
            else:
                other = random_.randrange(len(frame))
                frame[at], frame[other] = frame[other], frame[at]
        try:
            parse(frames)
            n_parsed += 1
        except Rejection as rejection:
            str(rejection).encode("ascii")
    assert n_parsed > N / 10
