"""The transport alone: a process that does nothing with a slice but answer.

Run as `python -m rcm_daemon.bench.echo <slices> <results>`.
"""

from __future__ import annotations

import sys

from rcm_daemon.bench.process import TOPIC, sockets

ANSWER = bytes(7_000)
"""As long as a result of sixty slices."""


def main() -> None:
    """Answer every slice at once."""
    subscriber, publisher = sockets(*sys.argv[1:])
    while True:
        subscriber.recv_multipart(copy=False)
        publisher.send_multipart([TOPIC, ANSWER])


if __name__ == "__main__":
    main()
