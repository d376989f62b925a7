"""Microscope, daemon and subscriber in three processes on this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rcm_daemon.bundle.estimator import estimator_parameters
from rcm_daemon.bundle.location import resolve_bundle
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.records import BOUNDARIES
from rcm_daemon.display.message_view import view_of_fields
from rcm_daemon.display.picture import draw_stack
from rcm_daemon.errors import RcmError
from rcm_daemon.local_daemon import STOP_S, LocalDaemon, said_in
from rcm_daemon.replay import thumbnail
from rcm_daemon.reporting import demand_folders, with_bundle
from rcm_daemon.simulator import make_phantom
from rcm_daemon.watch import live_view, results, subscribe

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rcm_daemon.simulator import Phantom

PATIENCE_S = 120.0


class DemoError(RcmError):
    """The demonstration fell silent."""


def run_demo(seed: int, fps: float, plot: Path, bundle: Path | None) -> None:
    """Play the phantom `seed` through a daemon, show it live, draw it, and measure it against its truth.

    Raises
    ------
    ConfigurationError
        The picture's folder is not there.
    DemoError, LocalDaemonError
        When no final result comes.
    """
    demand_folders(plot)
    console = Console()
    options = ["--bundle", str(bundle)] if bundle is not None else []
    with tempfile.TemporaryDirectory() as folder, LocalDaemon(Path(folder), *options) as daemon:
        (slices,) = daemon.controllers
        console.print(f"microscope -> {slices} -> daemon -> {daemon.results} -> this view")
        simulate = [sys.executable, "-m", "rcm_daemon", "simulate", "phantom", "--bind", slices]
        simulate += ["--fps", str(fps), "--seed", str(seed)]
        log = Path(folder) / "microscope.log"
        with log.open("w") as file:
            microscope = subprocess.Popen(simulate, stderr=file)  # noqa: S603
        try:
            final = _follow(daemon, microscope, log, console)
        finally:
            if not console.is_terminal:  # there the live view ends without a line's end
                console.print()
            microscope.terminate()
            microscope.wait(STOP_S)
    phantom = make_phantom(seed)
    opened = load_verified(resolve_bundle(bundle))
    view = view_of_fields(final, phantom.true_boundaries_um)
    view = with_bundle(view, opened.manifest, estimator_parameters(opened))
    draw_stack(view, [thumbnail(phantom.render(index), 0) for index in final["index"]], plot)
    console.print(_verdict(final, phantom))
    console.print(f"picture: {plot}")


def _follow(
    daemon: LocalDaemon, microscope: subprocess.Popen[bytes], log: Path, console: Console
) -> dict[str, Any]:
    """Show results until the stack has ended."""
    deadline_s = time.monotonic() + PATIENCE_S
    waiting = Text("waiting for the first slice")
    with subscribe(daemon.results) as socket, Live(waiting, console=console) as live:
        for fields in results(socket):
            if fields is not None:
                deadline_s = time.monotonic() + PATIENCE_S
                live.update(live_view(fields))
                if fields["state"] != "open":
                    return fields
                continue
            daemon.check_alive()
            if microscope.poll():
                raise DemoError(f"the microscope ended with exit code {microscope.poll()}; {said_in(log)}")
            if time.monotonic() > deadline_s:
                raise DemoError(f"no result came for {PATIENCE_S:.0f} s; {daemon.said()}")
    raise DemoError("the results ended")


def _verdict(final: dict[str, Any], phantom: Phantom) -> RenderableType:
    lines = [f"{final['state']}: {final['n_slices']} slices, {final['n_lost']} messages lost"]
    for name, truth_um in zip(BOUNDARIES, phantom.true_boundaries_um, strict=True):
        shown = name.replace("_", "-").replace("dej", "DEJ")
        if final[f"{name}_found"]:
            um, low_um, high_um = (final[f"{name}{end}_um"] for end in ("", "_low", "_high"))
            interval = f" (90 %: {low_um:.1f} to {high_um:.1f})" if low_um < high_um else ""
            off_um = um - truth_um
            lines.append(f"{shown}: {um:.1f} um{interval}, truth {truth_um:.1f} um, off by {off_um:+.1f} um")
        else:
            lines.append(f"{shown}: {final[f'{name}_status'].replace('_', ' ')}, truth {truth_um:.1f} um")
    lines.append("Simulated skin; research use only, not a medical device.")
    return Text("\n".join(lines))
