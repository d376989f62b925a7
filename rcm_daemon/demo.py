"""Microscope, daemon and subscriber in three processes on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rcm_daemon.core.records import BOUNDARIES
from rcm_daemon.display.message_view import view_of_fields
from rcm_daemon.display.picture import draw_stack
from rcm_daemon.errors import RcmError
from rcm_daemon.replay import thumbnail
from rcm_daemon.simulator import make_phantom
from rcm_daemon.watch import live_view, results, subscribe

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rcm_daemon.simulator import Phantom

PATIENCE_S = 120.0


class DemoError(RcmError):
    """A process of the demonstration ended or fell silent."""


def run_demo(seed: int, fps: float, plot: Path, bundle: Path | None) -> None:
    """Play the phantom `seed` through a daemon, show it live, draw it, and measure it against its truth.

    Raises
    ------
    DemoError
        When no final result comes.
    """
    console = Console()
    slices, results_at, control = (_free_endpoint() for _ in range(3))
    console.print(f"microscope -> {slices} -> daemon -> {results_at} -> this view")
    with tempfile.TemporaryDirectory() as folder:
        serve = ["serve", "--slices-connect", slices, "--results-bind", results_at, "--control-bind", control]
        serve += ["--state-dir", str(Path(folder) / "state")]
        serve += ["--bundle", str(bundle)] if bundle is not None else []
        simulate = ["simulate", "phantom", "--bind", slices, "--fps", str(fps), "--seed", str(seed)]
        log_path = Path(folder) / "log"
        with log_path.open("w") as log:
            processes = [
                subprocess.Popen([sys.executable, "-m", "rcm_daemon", *words], stderr=log)  # noqa: S603
                for words in (serve, simulate)
            ]
            try:
                final = _follow(results_at, console, processes)
                if not console.is_terminal:  # there the live view ends without a line's end
                    console.print()
            except DemoError as error:
                raise DemoError(f"{error}; the processes said: {log_path.read_text()[-500:]}") from None
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait(30)
    phantom = make_phantom(seed)
    view = view_of_fields(final, phantom.true_boundaries_um)
    draw_stack(view, [thumbnail(phantom.render(index), 0) for index in final["index"]], plot)
    console.print(_verdict(final, phantom))
    console.print(f"picture: {plot}")


def _follow(endpoint: str, console: Console, processes: list[subprocess.Popen[bytes]]) -> dict[str, Any]:
    """Show results until the stack has ended."""
    deadline_s = time.monotonic() + PATIENCE_S
    with subscribe(endpoint) as socket_, Live(Text("waiting for the first slice"), console=console) as live:
        for fields in results(socket_):
            if fields is not None:
                deadline_s = time.monotonic() + PATIENCE_S
                live.update(live_view(fields))
                if fields["state"] != "open":
                    return fields
            elif processes[0].poll() is not None:
                raise DemoError(f"the daemon ended with exit code {processes[0].returncode}")
            elif time.monotonic() > deadline_s:
                raise DemoError(f"no result came for {PATIENCE_S:.0f} s")
    raise DemoError("the results ended")


def _verdict(final: dict[str, Any], phantom: Phantom) -> RenderableType:
    lines = [f"{final['state']}: {final['n_slices']} slices, {final['n_lost']} messages lost"]
    for name, truth_um in zip(BOUNDARIES, phantom.true_boundaries_um, strict=True):
        shown = name.replace("_", "-").replace("dej", "DEJ")
        if final[f"{name}_found"]:
            off_um = final[f"{name}_um"] - truth_um
            lines.append(
                f"{shown}: {final[f'{name}_um']:.1f} um, truth {truth_um:.1f} um, off by {off_um:+.1f} um"
            )
        else:
            lines.append(f"{shown}: {final[f'{name}_status'].replace('_', ' ')}, truth {truth_um:.1f} um")
    lines.append("Simulated skin; research use only, not a medical device.")
    return Text("\n".join(lines))


def _free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
