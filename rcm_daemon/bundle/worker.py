"""The process that runs the networks of one bundle; it holds nothing that cannot be sent to it again.

The supervisor starts it as `python -m rcm_daemon.bundle.worker <launch> <channel> <memory> <parent>`. It
ends when its channel closes.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.channel import BundleInfo, SharedView, decode, encode, ready_message
from rcm_daemon.bundle.check import check_golden
from rcm_daemon.bundle.embedding import embed_slice
from rcm_daemon.bundle.execution import ON_GPU
from rcm_daemon.bundle.launch import Launch
from rcm_daemon.bundle.manifest import digests_of
from rcm_daemon.bundle.parentage import end_with
from rcm_daemon.bundle.prompter import Prompter
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.pipeline import follow
from rcm_daemon.core.quality import repeats, weights_in_stack
from rcm_daemon.core.records import Slice, SliceHeader
from rcm_daemon.core.rhythm import Rhythm
from rcm_daemon.errors import BundleError, DeviceError, InferenceError, RcmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rcm_daemon.core.stack import EmbeddedSlice

EXIT_DEVICE = 70  # EX_SOFTWARE: the device failed under a run, only a new process recovers


def open_networks(launch: Launch) -> Networks:
    """Open and warm the networks of a bundle that a daemon can serve.

    Raises
    ------
    RcmError
        The bundle cannot be loaded, is another than was asked for, computes something else than where it was
        made, or needs slices that a daemon does not have yet.
    """
    public_key = bytes.fromhex(launch.public_key) if launch.public_key else None
    bundle = load_verified(Path(launch.folder), public_key)
    manifest = bundle.manifest
    digests = digests_of(manifest, bundle.digest)
    if launch.digest and launch.digest not in digests.values():
        raise BundleError(
            f"the bundle in {bundle.folder} must have digest {launch.digest[:12]}, got {bundle.digest[:12]}"
        )
    if manifest.kind == "context":
        raise BundleError(
            f"a daemon labels the newest slice before the one below it is there, bundle {manifest.name} "
            f"needs both: label recorded stacks with rcm-daemon replay"
        )
    networks = Networks.open(
        bundle, launch.provider, launch.n_threads, variant=launch.variant, spin_us=launch.spin_us
    )
    if launch.checked:
        for item in check_golden(bundle, networks):
            if not item.ok:
                raise BundleError(f"{item.what} of bundle {manifest.name} differ here: {item.detail}")
    networks.warm_up()
    return networks


def answer(networks: Networks, memory: SharedView, request: bytes, more: Callable[[], bytes]) -> bytes:
    """Do what one request asks for.

    The stack that a slice is to be labelled in is written while the slice is embedded; `more` waits for the
    message that it is there, and where.

    Raises
    ------
    DeviceError
        The run failed on a GPU, after which none of its later answers could be trusted.
    """
    fields, _ = decode(request)
    started_ns = time.monotonic_ns()
    finished_ns = 0
    try:
        if fields["kind"] == "embed":
            # What the daemon sends has been validated there.
            header = SliceHeader.model_construct(**fields["header"])
            n_bytes = fields["n_bytes"]
            try:
                new = embed_slice(networks, Slice(header, memory.read(n_bytes)))
                finished_ns = time.monotonic_ns()
            finally:
                follows = decode(more())[0] if fields["stack_follows"] else None
            payload = new.embedding.astype(np.float32, copy=False).tobytes()
            reply = {"kind": "embedded", "weight": new.weight, "flags": list(new.flags)}
            reply |= {"n_bytes": len(payload), "error": ""}
            if follows is not None:
                try:
                    labels, said = _label_with(networks, memory, new, fields | follows)
                    payload, reply = payload + labels, reply | said
                except InferenceError as error:  # the embedding is good all the same
                    reply["error"] = str(error)
        else:
            stack = memory.read_stack(fields["n"], networks.manifest.embedding_size)
            payload, said = _label(networks, *stack, fields)
            reply = {"kind": "labelled"} | said
    except InferenceError as error:
        if isinstance(error, DeviceError) and networks.provider in ON_GPU:
            raise
        reply, payload = {"kind": "failed", "error": str(error)}, b""
    except Exception as error:  # a fault of one slice must not end the process that serves all
        reason = " ".join(str(error).split())[:200]
        reply = {"kind": "failed", "error": f"inference failed: {type(error).__name__}: {reason}"}
        payload = b""
    reply |= {"started_ns": started_ns, "finished_ns": finished_ns or time.monotonic_ns()}
    return encode(reply, payload)


def _label_with(
    networks: Networks, memory: SharedView, new: EmbeddedSlice, fields: dict[str, Any]
) -> tuple[bytes, dict[str, Any]]:
    """Label the stack of a slice just embedded, whose row there is still empty."""
    rows = memory.read_stack(fields["n"], networks.manifest.embedding_size, fields["n_bytes"])
    embeddings, z_um, weight = rows[0].copy(), rows[1], rows[2].copy()
    embeddings[fields["place"]], weight[fields["place"]] = new.embedding, new.weight
    # Only now is it known whether it repeats the slice above, or the one below repeats it.
    weight = weights_in_stack(weight, repeats(embeddings))
    return _label(networks, embeddings, z_um, weight, fields)


def _label(
    networks: Networks,
    embeddings: NDArray[np.float32],
    z_um: NDArray[np.float32],
    weight: NDArray[np.float32],
    fields: dict[str, Any],
) -> tuple[bytes, dict[str, Any]]:
    """Label a stack; also return what is said of all but its deepest slice, where it is asked for."""
    parameters, said = networks.estimator_parameters, {}
    if "known" in fields and parameters is not None:
        # Depths as the daemon has them: those in memory are rounded for the network.
        exact_um = np.array(fields["z_um"], np.float64)
        said["said"] = follow(embeddings, exact_um, weight, networks.recur, parameters, fields["known"])
    given = networks.recur(embeddings, z_um, weight)
    evidence = b"" if given.evidence is None else given.evidence.tobytes()
    return given.probabilities.tobytes() + evidence, said


def rehearse(networks: Networks, memory: SharedView, request: bytes, more: Callable[[], bytes]) -> None:
    """Answer a request for nothing, whatever its bytes have become."""
    with np.errstate(all="ignore"):
        answer(networks, memory, request, more)


def run_cnn_for_nothing(networks: Networks) -> None:
    """Run the CNN on a black slice; on a CPU its failure is told by whatever slice meets it too.

    Raises
    ------
    DeviceError
        As `answer` does.
    """
    try:
        networks.keep_warm()
    except InferenceError as error:
        if isinstance(error, DeviceError) and networks.provider in ON_GPU:
            raise


def main() -> None:
    """Serve one channel until it closes."""
    # A terminal or a service manager signals whole groups; only the daemon decides when its worker ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    launch, fd, memory_fd, parent = sys.argv[1:]
    end_with(int(parent))
    channel = socket.socket(fileno=int(fd))
    asked = Launch.from_argument(launch)
    try:
        networks = open_networks(asked)
    except RcmError as error:
        channel.send(encode({"kind": "refused", "error": str(error)}))
        return
    manifest = networks.manifest
    parameters = networks.estimator_parameters
    info = BundleInfo(
        manifest.name,
        manifest.version,
        networks.digest,
        networks.provider,
        manifest.embedding_size,
        networks.n_threads,
        parameters.model_dump_json(by_alias=True) if parameters is not None else "",
        networks.variant,
        networks.reason,
    )
    channel.send(ready_message(info))
    memory = SharedView(int(memory_fd))
    gc.collect()
    gc.freeze()  # networks and modules stay, and need not be looked through again and again
    prompter = Prompter(
        channel,
        Rhythm(asked.rehearsal_share),
        partial(rehearse, networks, memory),
        partial(run_cnn_for_nothing, networks),
        keeps_warm=networks.provider in ON_GPU,
    )
    try:
        while request := prompter.next_request():
            channel.send(answer(networks, memory, request, prompter.what_follows))
    except DeviceError as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_DEVICE)
    except ConnectionError:
        return  # the daemon is gone


if __name__ == "__main__":
    main()
