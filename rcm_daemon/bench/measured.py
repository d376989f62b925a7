"""All that one run measured, and the figures that are read off it; pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bench.timings import Sample, Summary, median_by_length, near, summarise
from rcm_daemon.errors import RcmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.bench.together import PlayedTogether

SCHEMA = "rcm-bench-1"
REPLAY, TRANSPORT, ONE_PROCESS = "replay", "transport alone", "one process"
PARTS = ("wait_ms", "embed_ms", "label_ms", "total_ms")
SHORT_STACK, REHEARSED_STACK, NEAR = 5, 12, 4
"""Flatness compares stacks of 5 slices with the longest, each with its neighbours so far away; and those of
12, the first for which the daemon knows how often slices come."""


class BenchError(RcmError):
    """What was measured is not the same thing, or not what it is called."""


@dataclass
class Pace:
    """One pace, at the frame rate or back to back: the daemon's answers, their parts, and the rivals."""

    answers: list[Sample] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    rivals: dict[str, list[float]] = field(default_factory=dict)
    fps: list[float] = field(default_factory=list)

    def note_answer(self, sample: Sample, message: dict[str, Any]) -> None:
        """Take in one answer, and what the daemon says of it."""
        self.answers.append(sample)
        for part in PARTS:
            self.parts[part].append(message[part])

    def note_rival(self, name: str, ms: float) -> None:
        """Take in one run of a rival."""
        self.rivals.setdefault(name, []).append(ms)

    def fields(self) -> dict[str, Any]:
        """Return summaries and ratios; only the rivals where the bundle is none that a daemon serves."""
        rivals = {name: summarise(times) for name, times in self.rivals.items()}
        found: dict[str, Any] = {name: asdict(summary) for name, summary in rivals.items()}
        bare = rivals["bare"]
        ratios = {
            f"{name} / bare p50": s.p50_ms / bare.p50_ms
            for name, s in rivals.items()
            if name not in ("bare", TRANSPORT, ONE_PROCESS)
        }
        if self.answers:
            end_to_end = summarise([sample.ms for sample in self.answers])
            found["end_to_end"] = asdict(end_to_end)
            found["parts"] = {part: asdict(summarise(times)) for part, times in self.parts.items()}
            total = self.parts["total_ms"]
            beyond = [sample.ms - inside for sample, inside in zip(self.answers, total, strict=True)]
            found["parts"]["transport_ms"] = asdict(summarise(beyond))
            ratios |= _beyond(end_to_end, rivals) | self._flatness()
        return found | {"ratios": ratios, "fps": float(np.median(self.fps))}

    def _flatness(self) -> dict[str, float]:
        longest = max(sample.n_slices for sample in self.answers)
        if longest < SHORT_STACK + 2 * NEAR:
            return {}
        long = float(np.median(near(self.answers, longest - NEAR, NEAR)))
        found = {}
        for n in (SHORT_STACK, REHEARSED_STACK):
            if longest >= n + 2 * NEAR:
                short = float(np.median(near(self.answers, n, NEAR)))
                found[f"end to end at {longest} - at {n} slices, p50 ms"] = long - short
                found[f"end to end at {longest} / at {n} slices, p50"] = long / short
        return found


def _beyond(end_to_end: Summary, rivals: dict[str, Summary]) -> dict[str, float]:
    bare = rivals["bare"]
    found = {
        "end to end - bare, p50 ms": end_to_end.p50_ms - bare.p50_ms,
        "end to end - bare, p99 ms": end_to_end.p99_ms - bare.p99_ms,
        "end to end / bare, p50": end_to_end.p50_ms / bare.p50_ms,
    }
    if TRANSPORT in rivals:
        beyond_ms = end_to_end.p50_ms - bare.p50_ms - rivals[TRANSPORT].p50_ms
        found["end to end - bare - transport alone, p50 ms"] = beyond_ms
    if ONE_PROCESS in rivals:
        least_ms = rivals[ONE_PROCESS].p50_ms
        found["one process - bare, p50 ms"] = least_ms - bare.p50_ms
        found["end to end - one process, p50 ms"] = end_to_end.p50_ms - least_ms
    return found


@dataclass
class Measured:
    """One run: `about` says where and with what, `notes` what could not be measured and why.

    `n_in_rehearsals` is after how many slices something else still ran when the daemon might rehearse.
    """

    about: dict[str, Any]
    at_frame_rate: Pace = field(default_factory=Pace)
    back_to_back: Pace = field(default_factory=Pace)
    script: list[Sample] = field(default_factory=list)
    bare_hot_ms: list[float] = field(default_factory=list)
    archive: list[dict[str, float]] = field(default_factory=list)
    together: list[PlayedTogether] = field(default_factory=list)
    largest_difference: float = 0.0
    n_in_rehearsals: int = 0
    lightness: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "schema": SCHEMA,
            **self.about,
            "at_frame_rate": self.at_frame_rate.fields(),
            "back_to_back": self.back_to_back.fields(),
            "bare_over_and_over": self._over_and_over(),
            "script": self._script(),
            "together": self._together(),
            "archive": self._archive(),
            "by_stack_length": {
                "end_to_end": _pairs(self.at_frame_rate.answers),
                "script": _pairs(self.script),
            },
            "lightness": self.lightness,
            "notes": self.notes + self._disturbed(),
        }

    def _disturbed(self) -> list[str]:
        if not self.n_in_rehearsals:
            return []
        return [
            f"after {self.n_in_rehearsals} slices at the frame rate something else still ran when the daemon "
            "may rehearse, which slows both: a lower --fps leaves room for it"
        ]

    def _over_and_over(self) -> dict[str, Any]:
        hot = summarise(self.bare_hot_ms)
        found: dict[str, Any] = asdict(hot)
        if self.at_frame_rate.answers:
            end_to_end = summarise([sample.ms for sample in self.at_frame_rate.answers])
            found["end to end - this, p50 ms"] = end_to_end.p50_ms - hot.p50_ms
        return found

    def _script(self) -> dict[str, Any]:
        if not self.script:
            return {}
        longest = median_by_length(self.script)[-1]
        ours = float(np.median(near(self.at_frame_rate.answers, longest.n_slices, NEAR)))
        return {
            "n_slices": longest.n_slices,
            **asdict(summarise([one.ms for one in self.script if one.n_slices == longest.n_slices])),
            "end_to_end_p50_ms": ours,
            "script / end to end, p50": longest.ms / ours,
            "largest_difference": self.largest_difference,
        }

    def _together(self) -> dict[str, Any]:
        if not self.together:
            return {}
        ms = [one for played in self.together for one in played.ms]
        return {"end_to_end": asdict(summarise(ms)), "n_lost": sum(played.n_lost for played in self.together)}

    def _archive(self) -> dict[str, Any]:
        """Return slices a second of each way, medians of all rounds, and replay against the best batch."""
        if not self.archive:
            return {}
        found = {name: float(np.median([one[name] for one in self.archive])) for name in self.archive[0]}
        batched = [fps for name, fps in found.items() if name != REPLAY]
        ratio = {"replay / best batches": found[REPLAY] / max(batched)} if batched else {}
        return {"slices_per_s": found, "ratios": ratio}


def _pairs(samples: Sequence[Sample]) -> list[list[float]]:
    return [[sample.n_slices, sample.ms] for sample in median_by_length(samples)]
