"""A phantom stack: reproducible slices, consistent labels, variety that depth alone does not explain."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rcm_daemon.simulator import (
    FAMILIES,
    HELD_OUT_FAMILY,
    TRAINING_FAMILIES,
    Phantom,
    make_phantom,
    reader_agreement,
)

SMALL = {"shape": (96, 96), "pixel_size_um": 2.0}


@pytest.fixture(scope="module")
def many() -> list[Phantom]:
    return [
        make_phantom(seed, shape=(80, 80), pixel_size_um=2.0, patient_seed=seed // 2) for seed in range(160)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lesional", [False, True])
def test_slices_are_the_same_in_any_order(family: str, lesional: bool) -> None:
    first = make_phantom(5, family=family, lesional=lesional, **SMALL)
    again = make_phantom(5, family=family, lesional=lesional, **SMALL)
    indices = [0, len(first) // 2, len(first) - 1]
    forward = [first.render(index) for index in indices]
    backward = [again.render(index) for index in reversed(indices)][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert one.dtype == np.uint8
        assert one.shape == (96, 96)
        np.testing.assert_array_equal(one, other)
    assert (forward[0] != forward[1]).mean() > 0.5


def test_a_slice_is_the_frame_at_its_depth() -> None:
    phantom = make_phantom(6, **SMALL)
    np.testing.assert_array_equal(phantom.render_at(float(phantom.z_um[3]), 3), phantom.render(3))
    assert (phantom.render_at(float(phantom.z_um[3]) + 30, 3) != phantom.render(3)).any()
    phantom.render_at(float(phantom.z_um[-1]) + 300, len(phantom) + 7)


def test_noise_differs_between_repeats_of_a_depth() -> None:
    phantom = make_phantom(7, **SMALL)
    z_um = float(phantom.z_um[4])
    n = len(phantom)
    one, other = phantom.render_at(z_um, 4).astype(float), phantom.render_at(z_um, 4 + n).astype(float)
    assert (one != other).mean() > 0.3
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.5  # same place, same gain, other noise


@pytest.mark.parametrize(
    ("shape", "pixel_size_um"),
    [((32, 32), 1.0), ((33, 500), 1.0), ((500, 500), 0.5), ((20, 31), 3.0), ((64, 100), 0.8)],
)
def test_any_field_and_pitch(shape: tuple[int, int], pixel_size_um: float) -> None:
    if min(shape) * pixel_size_um < 32:
        shape = (shape[0] * 2, shape[1] * 2)
    phantom = make_phantom(3, shape=shape, pixel_size_um=pixel_size_um, family="meshed")
    frame = phantom.render(len(phantom) // 2)
    assert frame.shape == shape
    assert frame.std() > 5


def test_pitches_show_the_same_tissue() -> None:
    frames = []
    for pixel_size_um in (0.5, 1.0, 2.0):
        n = round(240 / pixel_size_um)
        phantom = make_phantom(4, family="vivid", shape=(n, n), pixel_size_um=pixel_size_um)
        frame = phantom.render(len(phantom) // 2).astype(np.float32)
        frames.append(cv2.resize(frame, (120, 120), interpolation=cv2.INTER_AREA))
    for other in frames[1:]:
        assert np.corrcoef(frames[0].ravel(), other.ravel())[0, 1] > 0.85
        assert other.mean() == pytest.approx(frames[0].mean(), rel=0.03)
        assert other.std() == pytest.approx(frames[0].std(), rel=0.1)


def test_patients_share_their_skin_but_not_their_sites() -> None:
    one, other = (make_phantom(seed, patient_seed=9, **SMALL) for seed in (1, 2))
    assert one.patient == other.patient
    assert one.true_boundaries_um != other.true_boundaries_um
    assert make_phantom(1, patient_seed=10, **SMALL).patient != one.patient


def test_arguments_are_kept() -> None:
    phantom = make_phantom(11, family=HELD_OUT_FAMILY, lesional=True, z_step_um=2.25, stack_id="s", **SMALL)
    assert (phantom.family, phantom.lesional, phantom.stack_id, phantom.seed) == (
        HELD_OUT_FAMILY,
        True,
        "s",
        11,
    )
    assert phantom.z_step_um == 2.25
    np.testing.assert_allclose(np.diff(phantom.z_um), 2.25)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"shape": (31, 60)},
        {"pixel_size_um": 0.0},
        {"z_step_um": 0.0},
        {"z_step_um": float("nan")},
    ],
)
def test_impossible_arguments_are_refused(wrong: dict[str, object]) -> None:
    arguments = {"seed": 1, "shape": (60, 60), "pixel_size_um": 1.0} | wrong
    with pytest.raises(ValueError, match="must be"):
        make_phantom(**arguments)


def test_unknown_family_is_refused() -> None:
    with pytest.raises(KeyError):
        make_phantom(1, family="martian", **SMALL)


def test_labels_follow_from_the_boundaries(many: list[Phantom]) -> None:
    for phantom in many:
        n = len(phantom)
        assert 15 <= n <= 101
        assert 1.5 <= phantom.z_step_um <= 5.0
        assert phantom.family in TRAINING_FAMILIES
        for boundaries, labels in (
            (phantom.boundaries_um, phantom.labels),
            (phantom.true_boundaries_um, phantom.true_labels),
            (phantom.reader_boundaries_um[0], phantom.reader_labels[0]),
            (phantom.reader_boundaries_um[1], phantom.reader_labels[1]),
        ):
            assert boundaries[0] < boundaries[1]
            assert (np.diff(labels) >= 0).all()
            np.testing.assert_array_equal(labels, [sum(z >= b for b in boundaries) for z in phantom.z_um])
        np.testing.assert_allclose(phantom.boundaries_um, phantom.reader_boundaries_um.mean(axis=0))


def test_stacks_are_balanced_like_the_paper(many: list[Phantom]) -> None:
    labels = np.concatenate([phantom.labels for phantom in many])
    shares = np.bincount(labels, minlength=3) / len(labels)
    np.testing.assert_allclose(shares, [0.44, 0.34, 0.22], atol=0.07)
    assert 36 <= np.mean([len(phantom) for phantom in many]) <= 50
    agreement = reader_agreement(np.concatenate([phantom.reader_labels for phantom in many], axis=1))
    assert 0.88 <= agreement <= 0.93
    assert 0.0 < np.mean([phantom.labels.max() < 2 for phantom in many]) < 0.2
    assert 0.1 < np.mean([phantom.lesional for phantom in many]) < 0.4


def test_depth_does_not_give_the_stratum_away(many: list[Phantom]) -> None:
    # The best guess from depth alone puts the two boundaries at their means; count both zeros of z.
    for zero in ("own", "first slice"):
        shift = [0.0 if zero == "own" else float(phantom.z_um[0]) for phantom in many]
        boundaries = np.array([np.array(p.boundaries_um) - s for p, s in zip(many, shift, strict=True)]).mean(
            axis=0
        )
        right = [
            ((p.z_um - s)[:, None] >= boundaries).sum(axis=1) == p.labels
            for p, s in zip(many, shift, strict=True)
        ]
        assert np.concatenate(right).mean() < 0.75


def test_brightness_does_not_give_the_stratum_away(many: list[Phantom]) -> None:
    grey: list[list[float]] = [[], [], []]
    for phantom in many[:60]:
        for index in range(0, len(phantom), 6):
            grey[phantom.labels[index]].append(float(phantom.render(index).mean()))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        brighter = (np.array(grey[one])[:, None] > np.array(grey[other])[None, :]).mean()
        assert 0.2 < brighter < 0.8
