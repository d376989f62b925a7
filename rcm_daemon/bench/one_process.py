"""The least that gives the same answer: one process that embeds each slice once, and keeps nothing.

No check of what comes, no account, no journal, no worker that may die, no look at the pictures. What it
costs beyond the CNN's run is what Python and the sockets cost, and what the daemon costs beyond this is the
price of the rest. Run as
`python -m rcm_daemon.bench.one_process <slices> <results> <bundle> <provider> <variant> <threads> <n>`, n
being the number of slices of a stack.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from rcm_daemon.bench.process import TOPIC, sockets
from rcm_daemon.bundle.field import to_field
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.pipeline import Estimation, estimate_strata, said_so_far
from rcm_daemon.core.records import STRATA
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack

if TYPE_CHECKING:
    from rcm_daemon.bundle.execution import ProviderChoice, VariantChoice
    from rcm_daemon.core.records import StrataEstimate


def main() -> None:
    """Embed every slice, estimate the stack so far, and answer with that."""
    slices, results, folder, provider, variant, n_threads, n_planned = sys.argv[1:]
    networks = Networks.open(
        load_verified(Path(folder)),
        cast("ProviderChoice", provider),
        int(n_threads),
        cast("VariantChoice", variant),
    )
    networks.warm_up()
    wanted = networks.manifest.input
    estimation = Estimation(networks.estimator_parameters)
    subscriber, publisher = sockets(slices, results)
    stack_id, stack = "", PartialStack()
    said: StrataEstimate | None = None
    while True:
        *_, head, blob = subscriber.recv_multipart(copy=False)
        header = json.loads(head.bytes)
        if header["stack_id"] != stack_id:
            stack_id, stack, said = header["stack_id"], PartialStack(), None
        pixels = np.frombuffer(blob.buffer, header["dtype"]).reshape(header["shape"])
        shape, pitch_um = wanted.shape, wanted.pixel_size_um
        field, _ = to_field(pixels, header["pixel_size_um"], header["max_value"], shape, pitch_um)
        new = EmbeddedSlice(header["index"], header["z_um"], networks.embed(field))
        earlier, stack = stack, stack.with_slices(new)
        known = said_so_far(earlier, said, stack)
        said = estimate_strata(stack, networks.recur, estimation, len(stack) / int(n_planned), known)
        answer = {
            "label": [STRATA[label] for label in said.labels.tolist()],
            "probability": said.probabilities.tolist(),
            "posterior": said.posterior.tolist(),
            "boundaries_um": [(place.um, place.low_um, place.high_um) for place in said.boundaries],
        }
        publisher.send_multipart([TOPIC, json.dumps(answer).encode()])


if __name__ == "__main__":
    main()
