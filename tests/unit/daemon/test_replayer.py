"""Stacks replayed one after another, each read while the one before is on its way."""

from __future__ import annotations

import io
import re
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from rich.console import Console
from tiny_bundle import FIELD, write_bundle

from rcm_daemon.bundle.estimator import estimator_parameters
from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.display.message_view import view_of
from rcm_daemon.errors import ConfigurationError, StackFileError
from rcm_daemon.readers import RecordedStack
from rcm_daemon.replay import AHEAD, Replayed, Replayer, open_for_replay
from rcm_daemon.reporting import ReplayOutputs, replay_all, with_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

N = 40


class Recording:
    """A recorded stack of noise, which counts what is still in memory and may break off."""

    def __init__(self, name: str, breaks_at: int = -1) -> None:
        self.alive: list[weakref.ref[np.ndarray]] = []
        self.is_closed = False
        self._rng = np.random.default_rng(len(name))
        self._breaks_at = breaks_at
        self.on_read: Callable[[int], None] = lambda index: None
        z_um = tuple(3.0 * i for i in range(N))
        self.stack = RecordedStack(
            name, Path(name), z_um, 0.5, FIELD, "uint8", 0, (), self._read, self._close
        )

    def _read(self, index: int) -> np.ndarray:
        assert not self.is_closed
        self.on_read(index)
        if index == self._breaks_at:
            raise StackFileError(f"slice {index} is torn")
        image = self._rng.integers(60, 180, FIELD, dtype=np.uint8)
        self.alive.append(weakref.ref(image))
        return image

    def _close(self) -> None:
        self.is_closed = True

    @property
    def n_in_memory(self) -> int:
        return sum(one() is not None for one in self.alive)


@pytest.fixture
def replayer(tmp_path: Path) -> Replayer:
    write_bundle(tmp_path)
    return Replayer(open_for_replay(load_verified(tmp_path), "cpu", "fp32"), live=False, thumbnails=False)


def test_each_stack_is_answered_in_order_and_closed(replayer: Replayer) -> None:
    recordings = [Recording("a"), Recording("torn", breaks_at=N // 2), Recording("c")]
    absent = StackFileError("nothing there")
    stacks = [recordings[0].stack, absent, recordings[1].stack, recordings[2].stack]
    answers = list(replayer.replay_each(stacks))
    assert [one.final.stack_id if isinstance(one, Replayed) else str(one) for one in answers] == [
        "a",
        "nothing there",
        f"slice {N // 2} is torn",
        "c",
    ]
    assert all(one.is_closed for one in recordings)
    assert all(one.final.n_slices == N for one in answers if isinstance(one, Replayed))


def test_a_terminal_shows_which_stack_how_far_and_how_long(replayer: Replayer, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.tif" for name in ("first", "second")]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(60, 180, (N, *FIELD), dtype=np.uint8)
        tifffile.imwrite(path, noise, photometric="minisblack")
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system="truecolor", _environ={})
    scale = {"z_step_um": 3.0, "pixel_size_um": 0.5}
    assert replay_all(paths, replayer._networks, ReplayOutputs(), console=console, **scale) == 0
    shown = text.getvalue()
    assert re.search(r"second\.tif.*100%.*0:00:00", shown)
    text.seek(0)
    text.truncate()
    replay_all(paths, replayer._networks, ReplayOutputs(), console=Console(file=text, width=100), **scale)
    assert "100%" not in text.getvalue()  # what is not a terminal gets results alone


@pytest.mark.parametrize(("level", "is_calibrated"), [(0.05, False), (0.04, True)])
def test_a_picture_names_its_bundle_with_its_notice_and_whether_it_was_calibrated(
    replayer: Replayer, level: float, is_calibrated: bool
) -> None:
    (replayed,) = replayer.replay_each([Recording("a").stack])
    default = load_verified(default_bundle_path())
    estimator = estimator_parameters(default)
    levels = estimator.inside.model_copy(update={"overall": ((level, 1 - level),) * 2})
    estimator = estimator.model_copy(update={"inside": levels, "forecast": levels})
    manifest = default.manifest.model_copy(update={"name": "mine", "notice": "for mice"})
    view = with_bundle(view_of(replayed.final), manifest, estimator)
    assert view.notice == f"mine {manifest.version}: for mice"
    assert view.is_calibrated == is_calibrated


def test_where_nothing_can_be_written_nothing_is_replayed(tmp_path: Path) -> None:
    none = tmp_path / "none"
    with pytest.raises(ConfigurationError) as caught:
        ReplayOutputs(str(none / "a.json"), none / "b.json", none / "c.csv", none / "d.png")
    assert caught.value.faults == tuple(
        f"{none / name} needs a folder that is there, got {none}"
        for name in ("a.json", "b.json", "c.csv", "d.png")
    )
    ReplayOutputs("-", tmp_path / "b.json", Path("c.csv"))


def test_a_stack_that_breaks_off_is_not_read_on(replayer: Replayer) -> None:
    torn = Recording("torn", breaks_at=3)
    with pytest.raises(StackFileError, match="slice 3 is torn"):
        replayer.replay(torn.stack)
    assert len(torn.alive) == 3
    assert torn.is_closed


def test_pixels_leave_once_they_are_embedded(replayer: Replayer) -> None:
    """Of a stack that is labelled once, at its end, all slices were in memory before."""
    recording = Recording("long")
    most = []
    list(replayer.replay_each([recording.stack], lambda stack: most.append(recording.n_in_memory)))
    n_lanes = replayer._networks.n_lanes
    assert len(most) == N
    assert max(most) <= (AHEAD + 1) * n_lanes + 2


def test_slices_are_embedded_side_by_side_while_more_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is embedded before all lanes are at it and the slice after theirs has been read."""
    write_bundle(tmp_path)
    networks = open_for_replay(load_verified(tmp_path), "cpu", "fp32")
    networks.n_lanes, embed = 3, networks.embed
    all_at_it, read_ahead = threading.Barrier(3), threading.Event()
    recording = Recording("long")

    def waiting(image: np.ndarray, what: str) -> np.ndarray:
        if not read_ahead.is_set():
            all_at_it.wait(30)
            assert read_ahead.wait(30)
        return embed(image, what)

    recording.on_read = lambda index: read_ahead.set() if index == 3 else None
    monkeypatch.setattr(networks, "embed", waiting)
    replayer = Replayer(networks, live=False, thumbnails=False)
    assert replayer.replay(recording.stack).final.n_slices == N


def test_a_slice_the_networks_refuse_ends_its_stack_alone(
    replayer: Replayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = replayer._networks.embed

    def refuse(image: np.ndarray, name: str) -> np.ndarray:
        if name == "slice 5" and not refused:
            refused.append(name)
            raise StackFileError("slice 5 cannot be embedded")
        return embed(image, name)

    refused: list[str] = []
    monkeypatch.setattr(replayer._networks, "embed", refuse)
    answers = list(replayer.replay_each([Recording("a").stack, Recording("b").stack]))
    assert str(answers[0]) == "slice 5 cannot be embedded"
    assert isinstance(answers[1], Replayed)
    assert len(answers) == 2


def test_a_stack_is_answered_before_many_that_cannot_be_opened(replayer: Replayer) -> None:
    n_asked_for = 0

    def stacks():
        nonlocal n_asked_for
        yield Recording("a").stack
        for n_asked_for in range(1, 200):
            yield StackFileError(f"nothing at {n_asked_for}")

    answers = replayer.replay_each(stacks())
    assert isinstance(next(answers), Replayed)
    assert n_asked_for <= AHEAD * replayer._networks.n_lanes + 1
    assert len(list(answers)) == 199


def test_a_stack_is_answered_before_what_nobody_expected(replayer: Replayer) -> None:
    def stacks():
        yield Recording("a").stack
        raise OSError("the share is gone")

    answers = replayer.replay_each(stacks())
    assert isinstance(next(answers), Replayed)
    with pytest.raises(OSError, match="the share is gone"):
        next(answers)


def test_numbers_after_a_torn_stack_do_not_depend_on_the_cores(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    found = set()
    for n_lanes in (1, 2, 5):
        networks = open_for_replay(load_verified(tmp_path), "cpu", "fp32")
        networks.n_lanes = n_lanes
        stacks = [Recording("a").stack, Recording("a", breaks_at=3).stack, Recording("a").stack]
        last = list(Replayer(networks, thumbnails=False).replay_each(stacks))[-1]
        assert isinstance(last, Replayed)
        found.add((last.final.acquisition, last.final.seq))
    assert found == {(3, 2 * (N + 1) + 3)}  # a message a slice, and one at the end of a whole stack


def test_what_a_slice_waits_for_a_lane_is_not_called_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path)
    networks = open_for_replay(load_verified(tmp_path), "cpu", "fp32")
    networks.n_lanes = 1
    now_ns, embed = 0, networks.embed

    def slow(image: np.ndarray, name: str) -> np.ndarray:
        nonlocal now_ns
        now_ns += 50_000_000
        return embed(image, name)

    monkeypatch.setattr(networks, "embed", slow)
    monkeypatch.setattr("rcm_daemon.replay.time.monotonic_ns", lambda: now_ns)
    replayed = Replayer(networks, thumbnails=False).replay(Recording("a").stack)
    assert [message.embed_ms for message in replayed.live] == [50.0] * N
