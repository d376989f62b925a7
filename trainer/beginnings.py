"""Beginnings of phantom stacks: the first quarter of thousands, for the intervals that are given so early.

A boundary is seldom found before a quarter of the stack has come: a thousand whole stacks know the coverage
of those intervals to six points. Most beginnings come nowhere near a boundary: of them some are rendered, and
each counts for as many as it stands for (Horvitz and Thompson 1952). Not too few of them: of one that
announces a boundary that is not there, which is rare, the intervals count for as many too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.pipeline import Estimation
from rcm_daemon.core.records import BOUNDARIES
from trainer.bootstrap import patient_weights, resampled
from trainer.live_runs import live_run
from trainer.live_scores import coverages
from trainer.markdown_tables import BOUNDARY_NAMES, table, with_interval
from trainer.offline import LeftOut
from trainer.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.bundle.sessions import Networks
    from trainer.live_scores import Coverage
    from trainer.offline import StackRun

FIRST_SHARE = 0.25
BEGINNINGS = LeftOut(first_share=FIRST_SHARE, taken=((5.0, 1.0), (25.0, 0.4), (np.inf, 0.3)))


def evaluate_beginnings(runs: Sequence[StackRun], networks: Networks) -> dict[str, Any]:
    """Count how many of the intervals given in beginnings hold.

    Parameters
    ----------
    runs
        What `trainer.offline.run_bundles` made of one bundle and `BEGINNINGS`.
    networks
        The bundle, which has an estimator.

    Returns
    -------
    dict
        `n_stacks` and how many of them were rendered, `n_patients`, and by kind of interval and boundary
        (`all` = both): `share` that held, `interval` of it (95 % over patients), `n` intervals looked at.
    """
    estimation = Estimation(networks.estimator_parameters)
    given: list[list[Coverage]] = []
    with progress_bar("beginnings, slice by slice", len(runs), "stacks") as advance:
        for run in runs:
            live = run.weight and live_run(
                run.stack, run.slices[0], networks.recur, estimation, run.n_planned
            )
            given.append(coverages(live) if live else [])
            advance(1, "")
    weight = np.array([run.weight for run in runs])
    patients = patient_weights([run.stack.patient for run in runs])
    found: dict[str, Any] = {
        "n_stacks": len(runs),
        "n_rendered": int((weight > 0).sum()),
        "n_patients": len({run.stack.patient for run in runs}),
    }
    for kind in ("inside", "forecast"):
        found[kind] = {}
        for name, wanted in (("all", (0, 1)), *((name, (k,)) for k, name in enumerate(BOUNDARIES))):
            chosen = [[c.holds for c in own if c.kind == kind and c.place in wanted] for own in given]
            counts = np.array([[sum(own), len(own)] for own in chosen], float)
            found[kind][name] = {
                "share": _share((counts * weight[:, None]).sum(axis=0)),
                "interval": resampled(_share, counts * weight[:, None], patients),
                "n": int(counts[:, 1].sum()),
            }
    return found


def _share(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def beginnings_markdown(found: dict[str, Any]) -> list[str]:
    """Write what `evaluate_beginnings` gives as lines of Markdown."""
    lines = [
        "",
        "## Beginnings",
        "",
        f"The first quarter of {found['n_stacks']} unseen phantoms of {found['n_patients']} patients. "
        f"Rendered were {found['n_rendered']}: all whose epidermis-DEJ lies above or near the last slice "
        "seen, and of the others a share that counts for all of them.",
    ]
    head = ["boundary", "intervals that hold %", "intervals", "forecasts that hold %", "forecasts"]
    rows = []
    for name in found["inside"]:
        row = [BOUNDARY_NAMES.get(name, name)]
        for kind in ("inside", "forecast"):
            one = found[kind][name]
            row += [with_interval(one["share"], one["interval"], 1, 1, 100), str(one["n"])]
        rows.append(row)
    return lines + table("Coverage of 90 % intervals in the first quarter", head, rows)
