"""The least that gives the same labels: one process that embeds each slice once, and keeps nothing.

No check of what comes, no account, no journal, no worker that may die, no look at the pictures, no boundary
and no interval. What it costs beyond the CNN's run is what Python and the sockets cost, and what the daemon
costs beyond this is the price of the rest. Run as
`python -m rcm_daemon.bench.one_process <slices> <results> <bundle> <provider> <variant>`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rcm_daemon.bench.process import TOPIC, sockets
from rcm_daemon.bundle.field import to_field
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.strata import paper_labels


def main() -> None:
    """Embed every slice, label the stack so far, and answer with that."""
    slices, results, folder, provider, variant = sys.argv[1:]
    choice: Any = provider, variant
    networks = Networks.open(load_verified(Path(folder)), choice[0], variant=choice[1])
    networks.warm_up()
    wanted = networks.manifest.input
    subscriber, publisher = sockets(slices, results)
    embeddings: list[np.ndarray] = []
    z_um: list[float] = []
    while True:
        *_, head, blob = subscriber.recv_multipart(copy=False)
        header = json.loads(head.bytes)
        if header["index"] == 0:
            embeddings, z_um = [], []
        pixels = np.frombuffer(blob.buffer, header["dtype"]).reshape(header["shape"])
        shape, pitch_um = wanted.shape, wanted.pixel_size_um
        field, _ = to_field(pixels, header["pixel_size_um"], header["max_value"], shape, pitch_um)
        embeddings.append(networks.embed(field))
        z_um.append(header["z_um"])
        weight = np.ones(len(z_um), np.float32)
        given = networks.label(np.stack(embeddings), np.array(z_um, np.float32), weight)
        answer = {"label": paper_labels(given).tolist(), "probability": given.tolist()}
        publisher.send_multipart([TOPIC, json.dumps(answer).encode()])


if __name__ == "__main__":
    main()
