"""What is wrong with a picture is told from the picture, and weighs accordingly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rcm_daemon.core.pipeline import Estimation, Recurrence
from rcm_daemon.core.quality import PictureDomain, picture_statistics, quality_flags, repeats, weight_of
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack
from rcm_daemon.simulator.phantom import make_phantom
from trainer.picture_domain import domain_of


@pytest.fixture(scope="module")
def frames():
    phantoms = [make_phantom(seed) for seed in range(6)]
    return [phantom.render(index) for phantom in phantoms for index in range(0, len(phantom), 4)]


@pytest.fixture(scope="module")
def domain(frames) -> PictureDomain:
    return domain_of([picture_statistics(frame)[0] for frame in frames])


def test_statistics_are_those_of_plain_formulas() -> None:
    image = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 255, (400, 400), dtype=np.uint8), (0, 0), 1.5
    )
    found, counts = picture_statistics(image)
    part = image[::4, ::4].astype(float)
    assert counts.sum() == part.size
    assert found.mean_grey == pytest.approx(part.mean())
    assert found.sd_grey == pytest.approx(part.std())
    assert found.percentile_99 == pytest.approx(np.percentile(part, 99), abs=1)
    grey = image.astype(float) - image.mean()
    for lag, value in ((1, found.autocorrelation_1px), (4, found.autocorrelation_4px)):
        assert value == pytest.approx((grey[:, lag:] * grey[:, :-lag]).mean() / grey.var(), abs=0.06)
    assert found.autocorrelation_1px_down == pytest.approx(
        (grey[1:] * grey[:-1]).mean() / grey.var(), abs=0.06
    )
    flat, _ = picture_statistics(np.full((64, 64), 90, np.uint8))
    assert flat.autocorrelation_1px == 1.0


def test_ordinary_frames_have_no_flag(frames, domain) -> None:
    assert {quality_flags(frame, domain) for frame in frames} == {()}


@pytest.mark.parametrize("sigma_px", [2.0, 4.0])
def test_a_blurred_frame_is_flagged_and_weighs_less(frames, sigma_px) -> None:
    flags = quality_flags(cv2.GaussianBlur(frames[3], (0, 0), sigma_px))
    assert flags == ("blurred",)
    assert 0 < weight_of(flags) < 1


@pytest.mark.parametrize("axis", [0, 1])
def test_motion_along_either_axis_is_a_blur(frames, axis) -> None:
    kernel = np.zeros((15, 15), np.float32)
    kernel[7 if axis else slice(None), slice(None) if axis else 7] = 1 / 15
    assert "blurred" in quality_flags(cv2.filter2D(frames[3], -1, kernel))


def test_what_no_microscope_shows_is_out_of_domain(frames, domain) -> None:
    rows, columns = np.mgrid[:1000, :1000]
    noise = np.random.default_rng(0).normal(90, 40, (1000, 1000)).clip(0, 255).astype(np.uint8)
    strange = {
        "noise": noise,
        "negative": 255 - frames[3],
        "squares": (((columns // 25 + rows // 25) % 2) * 200 + 20).astype(np.uint8),
        "nothing in focus": (noise // 16 + 90).astype(np.uint8),
    }
    for name, image in strange.items():
        assert "out_of_domain" in quality_flags(image, domain), name
        assert quality_flags(image) == (), name
    assert weight_of(("out_of_domain",)) < 0.2


def test_too_few_pictures_make_no_domain(frames) -> None:
    with pytest.raises(Exception, match="50 pictures or more, got 3"):
        domain_of([picture_statistics(frame)[0] for frame in frames[:3]])


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
