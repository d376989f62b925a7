"""What is wrong with a picture is told from the picture, and weighs accordingly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rcm_daemon.bundle.picture import picture_statistics, quality_flags
from rcm_daemon.core.pipeline import Estimation, Recurrence
from rcm_daemon.core.quality import PictureDomain, repeats, weight_of
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack
from rcm_daemon.simulator.phantom import make_phantom
from trainer.picture_domain import domain_of


@pytest.fixture(scope="module")
def frames():
    phantoms = [make_phantom(seed) for seed in range(6)]
    return [phantom.render(index) for phantom in phantoms for index in range(0, len(phantom), 5)]


@pytest.fixture(scope="module")
def domain(frames) -> PictureDomain:
    return domain_of([picture_statistics(frame) for frame in frames])


def test_statistics_are_those_of_plain_formulas() -> None:
    image = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 255, (400, 400), dtype=np.uint8), (0, 0), 1.5
    )
    found = picture_statistics(image)
    reduced = image.reshape(200, 2, 200, 2).mean(axis=(1, 3))
    assert found.mean_grey == pytest.approx(reduced.mean(), abs=1)
    assert found.sd_grey == pytest.approx(reduced.std(), abs=1)
    assert found.percentile_99 == pytest.approx(np.percentile(reduced, 99), abs=3)
    grey = reduced - reduced.mean()
    for lag, value in ((1, found.autocorrelation_1um), (4, found.autocorrelation_4um)):
        assert value == pytest.approx((grey[:, lag:] * grey[:, :-lag]).mean() / grey.var(), abs=0.06)
    down = (grey[1:] * grey[:-1]).mean() / grey.var()
    assert found.autocorrelation_1um_down == pytest.approx(down, abs=0.06)
    assert picture_statistics(np.full((64, 64), 90, np.uint8)).autocorrelation_1um == 1.0


def test_a_frame_recorded_at_twice_the_pitch_is_no_foreign_one(frames, domain) -> None:
    for frame in frames[::5]:
        coarse = cv2.resize(frame, (500, 500), interpolation=cv2.INTER_AREA)
        assert quality_flags(cv2.resize(coarse, (1000, 1000)), domain) == ()


def test_ordinary_frames_have_no_flag(frames, domain) -> None:
    assert {quality_flags(frame, domain) for frame in frames} == {()}


@pytest.mark.parametrize("sigma_px", [4.0, 6.0])
def test_a_blurred_frame_is_flagged_and_weighs_less(frames, sigma_px) -> None:
    flags = quality_flags(cv2.GaussianBlur(frames[3], (0, 0), sigma_px))
    assert flags == ("blurred",)
    assert 0 < weight_of(flags) < 1


@pytest.mark.parametrize("axis", [0, 1])
def test_motion_along_either_axis_is_a_blur(frames, axis) -> None:
    kernel = np.zeros((21, 21), np.float32)
    kernel[10 if axis else slice(None), slice(None) if axis else 10] = 1 / 21
    assert "blurred" in quality_flags(cv2.filter2D(frames[3], -1, kernel))


def test_what_no_microscope_shows_is_out_of_domain(frames, domain) -> None:
    rows, columns = np.mgrid[:1000, :1000]
    noise = np.random.default_rng(0).normal(90, 40, (1000, 1000)).clip(0, 255).astype(np.uint8)
    strange = {
        "noise": noise,
        "negative": 255 - frames[3],
        "squares": (((columns // 25 + rows // 25) % 2) * 200 + 20).astype(np.uint8),
    }
    for name, image in strange.items():
        assert "out_of_domain" in quality_flags(image, domain), name
        assert quality_flags(image) == (), name
    assert weight_of(("out_of_domain",)) < 0.2


def test_too_few_pictures_make_no_domain(frames) -> None:
    with pytest.raises(Exception, match="50 pictures or more, got 3"):
        domain_of([picture_statistics(frame) for frame in frames[:3]])


def slices(embeddings, **flags):
    return PartialStack(
        tuple(
            EmbeddedSlice(i, 3.0 * i, row, weight_of(flags.get(f"s{i}", ())), flags.get(f"s{i}", ()))
            for i, row in enumerate(embeddings)
        )
    )


def test_the_same_picture_again_is_flagged_and_weighs_nothing() -> None:
    embeddings = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    embeddings[2] = embeddings[1]
    embeddings[3] = embeddings[1] * (1 + 1e-6)
    embeddings[4] = embeddings[1] * 1.01
    assert repeats(embeddings).tolist() == [False, False, True, True, False]
    stack = slices(embeddings, s2=("saturated",))
    assert stack.flags == ((), (), ("saturated", "repeated"), ("repeated",), ())
    assert stack.weight.tolist() == [1, 1, 0, 0, 1]


def test_a_stack_of_strange_pictures_is_still_labelled() -> None:
    rng = np.random.default_rng(0)
    strange = {f"s{i}": ("out_of_domain",) for i in range(12)}
    stack = slices(rng.normal(size=(12, 8)).astype(np.float32), **strange)
    given = Recurrence(rng.dirichlet(np.ones(3), 12).astype(np.float32))
    estimate = Estimation().estimate(stack, given)
    assert len(estimate.labels) == 12
