"""All that a daemon says of a stack, on every prefix, against the networks and the estimator by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from harness import Daemon
from sender import Sender

from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.estimator import NOTHING_SAID
from rcm_daemon.core.mosaic import MosaicRule
from rcm_daemon.core.pipeline import Estimation, estimate_strata
from rcm_daemon.core.quality import DARK, OUT_OF_DOMAIN, WEIGHTS
from rcm_daemon.core.records import BOUNDARIES, STRATA, StrataEstimate
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack
from rcm_daemon.simulator import make_phantom

if TYPE_CHECKING:
    from pathlib import Path

STEP_UM = 12.0
FLAGS = {3: (DARK,), 6: (OUT_OF_DOMAIN,)}
ABOVE_UM = 9.0
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """A phantom across both boundaries, with one black slice and one of noise."""
    phantom = make_phantom(11, z_step_um=STEP_UM)
    images = [phantom.render(index) for index in range(len(phantom))]
    images[3] = np.zeros_like(images[0])
    images[6] = np.random.default_rng(0).integers(0, 256, images[0].shape, dtype=np.uint8)
    return images


@pytest.fixture(scope="module")
def embedded(pictures: list[np.ndarray]) -> tuple[Networks, tuple[EmbeddedSlice, ...]]:
    networks = Networks.open(load_verified(default_bundle_path()), "cpu", 1)
    rows = networks.embed_many(np.stack(pictures))
    flags = [FLAGS.get(index, ()) for index in range(len(rows))]
    weights = [WEIGHTS[own[0]] if own else 1.0 for own in flags]
    return networks, tuple(
        EmbeddedSlice(index, STEP_UM * index, row, weight, own)
        for index, (row, weight, own) in enumerate(zip(rows, weights, flags, strict=True))
    )


def said_of(estimate: StrataEstimate, revision: int) -> dict[str, Any]:
    """An estimate as an open stack's message has it."""
    fields: dict[str, Any] = {
        "label": [STRATA[k] for k in estimate.labels],
        "settled": estimate.settled.tolist(),
        "probability": estimate.probabilities,
        "posterior": estimate.posterior,
        "mosaic_name": [mosaic.name for mosaic in estimate.mosaic],
        "advice": estimate.advice.kind,
        "advice_z_um": estimate.advice.z_um,
        "advice_revision": revision if estimate.advice.kind != "none" else 0,
    }
    for key in ("z_um", "low_um", "high_um"):
        fields[f"mosaic_{key}"] = [getattr(mosaic, key) for mosaic in estimate.mosaic]
    for name, boundary in zip(BOUNDARIES, estimate.boundaries, strict=True):
        fields[f"{name}_status"], fields[f"{name}_found"] = boundary.status, boundary.status == "inside"
        for key in ("um", "low_um", "high_um", "forecast_um", "forecast_low_um", "forecast_high_um"):
            fields[f"{name}_{key}"] = getattr(boundary, key)
    return fields


def agrees(message: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if isinstance(value, (float, np.ndarray)) or (key.startswith("mosaic_") and key.endswith("_um")):
            np.testing.assert_allclose(message[key], value, err_msg=key, **TOLERANCE)
        else:
            assert message[key] == value, key


@pytest.mark.parametrize("estimator", ["monotone", "paper"])
def test_every_message_says_what_networks_and_estimator_give(
    tmp_path: Path,
    pictures: list[np.ndarray],
    embedded: tuple[Networks, tuple[EmbeddedSlice, ...]],
    estimator: str,
) -> None:
    networks, slices = embedded
    n_planned = len(slices)
    parameters = networks.estimator_parameters if estimator == "monotone" else None
    estimation = Estimation(parameters, MosaicRule(above_um=ABOVE_UM))
    mosaic = json.dumps({"above_um": ABOVE_UM})
    daemon = Daemon(tmp_path, default_bundle_path(), "--estimator", estimator, RCM_MOSAIC=mosaic)
    seen, before = [], NOTHING_SAID
    try:
        results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
        controller.send_multipart(sender.start("s", n_planned, pictures[0].shape, z_step_um=STEP_UM))
        for n, image in enumerate(pictures, start=1):
            controller.send_multipart(sender.slice("s", n - 1, image, z_um=STEP_UM * (n - 1)))
            message = results.until(n_slices=n)
            partial = PartialStack(slices[:n])
            given = networks.recur(partial.embeddings, partial.z_um.astype(np.float32), partial.weight)
            estimate = estimation.estimate(partial, given, n / n_planned, before)
            before = estimate.said
            agrees(message, said_of(estimate, message["revision"]))
            seen.append(message)
        controller.send_multipart(sender.end("s", n_planned))
        final = results.until(state="complete")
    finally:
        code = daemon.stop()
    assert code == 0
    assert [text for text in final["flags"] if text] == [own[0] for own in FLAGS.values()]
    assert final["label"] == seen[-1]["label"]
    assert (final["advice"], final["advice_revision"]) == ("none", 0)  # nobody acquires any more
    if estimator == "monotone":  # the stack has all of it in it
        assert {"acquire_at", "continue"} & {message["advice"] for message in seen}
        statuses = {message[f"{name}_status"] for name in BOUNDARIES for message in seen}
        assert {"not_reached", "inside"} <= statuses
        assert any(message["mosaic_name"] for message in seen)
        assert final["epidermis_dej_low_um"] < final["epidermis_dej_um"] < final["epidermis_dej_high_um"]
    else:
        assert {message["advice"] for message in seen} == {"none"}


def test_what_is_said_follows_from_the_slices_whatever_their_order_and_pace_and_restarts(
    tmp_path: Path, pictures: list[np.ndarray], embedded: tuple[Networks, tuple[EmbeddedSlice, ...]]
) -> None:
    networks, slices = embedded
    estimation, n_planned = Estimation(networks.estimator_parameters), len(slices)
    by_depth = list(range(n_planned))
    orders = {"upwards": by_depth[::-1], "mixed": np.random.default_rng(3).permutation(n_planned).tolist()}

    def of_these(arrived: list[int]) -> StrataEstimate:
        partial = PartialStack().with_slices(*(slices[index] for index in arrived))
        return estimate_strata(partial, networks.recur, estimation, len(arrived) / n_planned)

    whole = of_these(by_depth)
    partial = PartialStack(slices)
    given = networks.recur(partial.embeddings, partial.z_um.astype(np.float32), partial.weight)
    assert (
        whole.said != estimation.estimate(partial, given, 1.0).said
    )  # a depth is held: it tells orders apart
    daemon = Daemon(tmp_path, default_bundle_path())
    try:
        results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()

        def send(stack_id: str, index: int) -> None:
            image = pictures[index]
            controller.send_multipart(sender.slice(stack_id, index, image, z_um=STEP_UM * index))

        for stack_id, order in orders.items():
            controller.send_multipart(sender.start(stack_id, n_planned, pictures[0].shape))
            for n, index in enumerate(order, start=1):
                send(stack_id, index)
                message = results.until(stack_id=stack_id, n_slices=n)
                agrees(message, said_of(of_these(order[:n]), message["revision"]))
        controller.send_multipart(sender.start("burst", n_planned, pictures[0].shape))
        for index in by_depth:
            send("burst", index)
        message = results.until(stack_id="burst", n_slices=n_planned)
        agrees(message, said_of(whole, message["revision"]))
        controller.send_multipart(sender.start("restart", n_planned, pictures[0].shape))
        for index in by_depth[:-1]:
            send("restart", index)
            results.until(stack_id="restart", n_slices=index + 1)
        assert daemon.stop() == 0
        daemon = Daemon(tmp_path, default_bundle_path())
        results, controller = daemon.subscribe(), daemon.controller()
        send("restart", by_depth[-1])
        message = results.until(stack_id="restart", n_slices=n_planned)
        agrees(message, said_of(whole, message["revision"]))
    finally:
        code = daemon.stop()
    assert code == 0
