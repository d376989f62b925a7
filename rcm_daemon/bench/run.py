"""One run: daemon, bare CNN and rivals in turn, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from rcm_daemon.bench.archive import Archive
from rcm_daemon.bench.lightness import command_s, cpu_share, family_of, installed_mb, memory_mb
from rcm_daemon.bench.machine import describe_machine, versions
from rcm_daemon.bench.measured import ONE_PROCESS, TRANSPORT, BenchError, Measured
from rcm_daemon.bench.process import AnsweringProcess
from rcm_daemon.bench.rivals import (
    BareCnn,
    ReembeddingScript,
    field_of,
    largest_difference,
    rivals_of,
)
from rcm_daemon.bench.stream import Pictures, Stream, pause_until
from rcm_daemon.bench.timings import Sample
from rcm_daemon.bench.together import play_together
from rcm_daemon.bundle.location import resolve_bundle
from rcm_daemon.bundle.processor import n_cores
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.records import STRATA
from rcm_daemon.core.rhythm import REHEARSAL_SHARE
from rcm_daemon.local_daemon import LocalDaemon
from rcm_daemon.settings import ENV_PREFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.bench.measured import Pace
    from rcm_daemon.bench.rivals import Rival
    from rcm_daemon.bundle.execution import ProviderChoice, VariantChoice
    from rcm_daemon.bundle.verify import VerifiedBundle

START_PATIENCE_S = 120.0
TURNS_SHARE = 0.45
"""So much of the time between two slices is for what the daemon is compared with: later it may rehearse."""
ONE_A_SLICE = (
    "at the frame rate there is time for one of those compared after each slice, in turn; the one process "
    "then answers for the slices it has been sent"
)
N_STARTS = 3
IDLE_S = 5.0
N_OVER_AND_OVER = 20
"""Of which the first half are not counted."""
SCRIPT_LENGTHS = (5, 20, 40, 60)
SCRIPT_BUDGET_S = 20.0
"""A round leaves out the lengths with which the script would take longer than this altogether."""
MAX_DIFFERENCE = {"fp32": 1e-5, "int8": 1e-5, "fp16": 1e-2}
"""Of probabilities. In half precision two processes may choose other kernels for the same convolution."""


def run_bench(
    bundle_folder: Path | None,
    provider: ProviderChoice,
    variant: VariantChoice,
    *,
    fps: float,
    n_slices: int,
    n_rounds: int,
    n_instruments: int,
    side_px: int,
    checkpoint: Path | None,
) -> Measured:
    """Measure a bundle on this machine.

    Parameters
    ----------
    fps
        The frame rate of the first half of each round; the second goes back to back.
    n_slices
        Of each stack, fewer where the bundle labels no more.
    n_rounds
        Each plays one stack at the frame rate, one back to back, and one on each of the instruments.
    n_instruments
        How many send at once in the last part of each round.
    side_px
        Rows and columns of a slice.
    checkpoint
        The CNN as the trainer left it, to be timed in torch; None = torch is not timed.

    Raises
    ------
    BenchError
        The script and the daemon do not agree.
    RcmError
        The bundle or the daemon cannot be run.
    """
    folder = resolve_bundle(bundle_folder)
    bundle = load_verified(folder)
    networks = Networks.open(bundle, provider, variant=variant)
    networks.warm_up()
    manifest = bundle.manifest
    n_slices = min(n_slices, manifest.max_slices or n_slices)
    measured = Measured(
        {
            "machine": describe_machine(),
            "versions": versions(),
            "bundle": {"name": manifest.name, "version": manifest.version, "digest": bundle.digest},
            "provider": networks.provider,
            "variant": networks.variant,
            "options": {
                "fps": fps,
                "n_slices": n_slices,
                "n_rounds": n_rounds,
                "n_instruments": n_instruments,
                "side_px": side_px,
            },
        }
    )
    measured.about["n_threads"] = networks.n_threads
    pictures = Pictures.render(manifest, n_slices, side_px)
    with ExitStack() as stack:
        others, measured.notes = rivals_of(bundle, networks, checkpoint)
        for rival in others:
            stack.callback(rival.close)
        run = _Run(bundle, networks, pictures, others, measured)
        if manifest.kind == "context":
            measured.notes.append("only the CNN was timed: it sees the slice below too, no daemon serves it")
            run.rivals_alone(fps, n_rounds)
            run.bare_over_and_over()
            return measured
        archive_folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fields = np.stack([run.fields[index % len(run.fields)] for index in range(n_slices)])
        archive = Archive(archive_folder, bundle, networks, pictures, fields)
        options = ("--bundle", str(folder), "--provider", provider, "--variant", networks.variant)
        daemon = _start(stack, options, n_instruments, networks.n_threads, measured)
        pids = family_of(daemon.process.pid)
        context = stack.enter_context(zmq.Context())
        same = str(folder), networks.provider, networks.variant, str(networks.n_threads), str(n_slices)
        processes = [
            stack.enter_context(AnsweringProcess(context, pictures, *what))
            for what in (
                (TRANSPORT, "rcm_daemon.bench.echo"),
                (ONE_PROCESS, "rcm_daemon.bench.one_process", same),
            )
        ]
        streams = [stack.enter_context(Stream(context, daemon, number)) for number in range(n_instruments)]
        for number in range(n_rounds):
            _say(f"round {number + 1} of {n_rounds}")
            run.play(streams[0], processes, measured.at_frame_rate, f"paced {number}", fps)
            run.play(streams[0], processes, measured.back_to_back, f"back to back {number}", None)
            measured.together.append(play_together(streams, pictures, f"together {number}", fps))
            measured.archive.append(archive.run())
            run.bare_over_and_over()
        _say(f"idle for {IDLE_S:g} s")
        rss_mb, pss_mb = memory_mb(pids)
        measured.lightness |= {"resident_mb": rss_mb, "resident_shared_once_mb": pss_mb}
        measured.lightness["idle_cpu_share"] = cpu_share(pids, IDLE_S)
    measured.lightness |= _imports()
    measured.about["machine"]["load_average_after"] = list(os.getloadavg())
    return measured


def _start(
    stack: ExitStack, options: tuple[str, ...], n_controllers: int, n_threads: int, measured: Measured
) -> LocalDaemon:
    """Time the start of a daemon some times over; one more, on as many threads as the bare CNN, stays."""
    ready_s = []
    for number in range(N_STARTS + 1):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stays = number == N_STARTS
        pinned = {f"{ENV_PREFIX}N_THREADS": str(n_threads)} if stays else None
        daemon = LocalDaemon(folder, *options, n_controllers=n_controllers, environment=pinned)
        with ExitStack() as only_if_last:
            only_if_last.enter_context(daemon)
            ready_s.append(daemon.await_ready(START_PATIENCE_S))
            if stays:
                stack.push(only_if_last.pop_all())
    measured.lightness["start_to_ready_s"] = float(np.median(ready_s[:N_STARTS]))
    return daemon


def _imports() -> dict[str, object]:
    bare_s = command_s("-c", "pass")
    sizes = installed_mb()
    return {
        "help_s": command_s("-m", "rcm_daemon", "--help"),
        "import_s": command_s("-c", "import rcm_daemon.service") - bare_s,
        "installed_mb": sum(sizes.values()),
        "installed_mb_by_package": sizes,
    }


class _Run:
    """What all rounds of one run share."""

    def __init__(
        self,
        bundle: VerifiedBundle,
        networks: Networks,
        pictures: Pictures,
        others: list[Rival],
        measured: Measured,
    ) -> None:
        self._networks = networks
        self._for_script = networks
        if networks.provider == "cpu" and networks.n_threads != n_cores():
            # Nobody else needs the cores while the script is timed.
            choice = networks.provider, n_cores(), networks.variant
            self._for_script = Networks.open(bundle, *choice)
            self._for_script.warm_up()
        self._pictures = pictures
        self._slices = pictures.slices()
        self.fields = [field_of(one, bundle) for one in self._slices[: len(pictures.images)]]
        self._bare = BareCnn(networks)
        self._others = cycle(others)
        self._one_a_slice = False
        self._measured = measured

    def play(
        self,
        stream: Stream,
        processes: Sequence[AnsweringProcess],
        pace: Pace,
        stack_id: str,
        fps: float | None,
    ) -> None:
        """Play one stack; the rivals run in the gaps, or, without a rate, in turn with the daemon."""
        n_slices = len(self._slices)
        script_at = _script_lengths(n_slices)
        stream.begin(self._pictures.plan(stack_id))
        for process in processes:
            process.begin(stack_id)
        kept = {}
        begun_s = due_s = time.monotonic()
        for index in range(n_slices):
            if fps is not None:
                pause_until(due_s)
                due_s = max(due_s, time.monotonic()) + 1 / fps
            answer = stream.send(index, self._pictures.image(index))
            pace.note_answer(Sample(index + 1, answer.ms), answer.message)
            if index + 1 in script_at:
                kept[index + 1] = answer.message
            turns = [partial(self._process, pace, process, index) for process in processes]
            turns += [partial(rival, pace, index) for rival in (self._bare_turn, self._other_turn)]
            if fps is None:
                for turn in turns:
                    turn()
            else:
                self._take_turns(turns, index, due_s, fps)
        pace.fps.append(n_slices / (time.monotonic() - begun_s))
        stream.end(n_slices)
        for process in processes:
            if process.name == ONE_PROCESS:
                process.catch_up()
                self._check_same(answer.message, json.loads(process.answer))
        if fps is not None:
            self._script(kept)

    def _take_turns(self, turns: list[partial[None]], index: int, due_s: float, fps: float) -> None:
        """Run what the daemon is compared with, before it may rehearse for the slice due at `due_s`.

        Once they have not all been through in time only one of them runs after each slice.
        """
        if self._one_a_slice:
            turns = [turns[index % len(turns)]]
        for place, turn in enumerate(turns, start=1):
            pause_until(due_s - (1 - TURNS_SHARE * place / (len(turns) + 1)) / fps)
            turn()
        if time.monotonic() > due_s - REHEARSAL_SHARE / fps:
            if self._one_a_slice:
                self._measured.n_in_rehearsals += 1
            else:
                self._one_a_slice = True
                self._measured.notes.append(ONE_A_SLICE)

    def _process(self, pace: Pace, process: AnsweringProcess, index: int) -> None:
        pace.note_rival(process.name, process.run(index))

    def _check_same(self, message: dict[str, Any], other: dict[str, Any]) -> None:
        """Refuse to compare a process that does not say what the daemon says of the same stack."""
        difference = largest_difference(message, np.array(other["probability"]))
        allowed = MAX_DIFFERENCE[self._networks.variant]
        if difference > allowed or message["label"] != other["label"]:
            raise BenchError(
                f"daemon and {ONE_PROCESS} must give the same labels and probabilities to {allowed:g}, they "
                f"differ by {difference:g} in a stack of {len(message['label'])} slices"
            )

    def rivals_alone(self, fps: float, n_rounds: int) -> None:
        """Time the rivals without a daemon."""
        for pace, gap_s in ((self._measured.at_frame_rate, 1 / fps), (self._measured.back_to_back, 0.0)):
            begun_s = time.monotonic()
            n_runs = n_rounds * len(self._slices)
            for index in range(n_runs):
                pause_until(time.monotonic() + gap_s)
                self._bare_turn(pace, index)
                self._other_turn(pace, index)
            pace.fps.append(n_runs / (time.monotonic() - begun_s))

    def bare_over_and_over(self) -> None:
        """Run the bare CNN without pauses: all it needs is in the caches, as after a rehearsal."""
        times_ms = [self._bare.run(self.fields[index % len(self.fields)]) for index in range(N_OVER_AND_OVER)]
        self._measured.bare_hot_ms += times_ms[N_OVER_AND_OVER // 2 :]

    def _bare_turn(self, pace: Pace, index: int) -> None:
        pace.note_rival(self._bare.name, self._bare.run(self.fields[index % len(self.fields)]))

    def _other_turn(self, pace: Pace, index: int) -> None:
        """Run the one of the others whose turn it is."""
        if (other := next(self._others, None)) is not None:
            pace.note_rival(other.name, other.run(self.fields[index % len(self.fields)]))

    def _script(self, kept: dict[int, dict[str, object]]) -> None:
        script = ReembeddingScript(self._for_script, self._slices)
        left_ms, a_slice_ms = SCRIPT_BUDGET_S * 1e3, 0.0
        for n_slices, message in kept.items():
            if n_slices * a_slice_ms > left_ms:
                self._measured.notes.append(f"the script was not run at {n_slices} slices: it takes too long")
                continue
            ms, said = script.run(n_slices)
            left_ms, a_slice_ms = left_ms - ms, ms / n_slices
            difference = max(
                largest_difference(message, said.probabilities),
                largest_difference(message, said.posterior, "posterior"),
            )
            allowed = MAX_DIFFERENCE[self._networks.variant]
            if difference > allowed or message["label"] != [STRATA[k] for k in said.labels]:
                raise BenchError(
                    f"daemon and script must give the same labels, and probabilities and posterior to "
                    f"{allowed:g}, they differ by {difference:g} in a stack of {n_slices} slices"
                )
            self._measured.script.append(Sample(n_slices, ms))
            self._measured.largest_difference = max(self._measured.largest_difference, difference)


def _script_lengths(n_slices: int) -> set[int]:
    """Return the lengths the script is run at; the longest stack where all are longer."""
    return {n for n in SCRIPT_LENGTHS if n <= n_slices} or {n_slices}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
