"""Patches, whitening, clusters, filters: worked by hand; dense encoding against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.errors import DataSetError
from trainer.textons.hames import HamesTextons
from trainer.textons.kaur import DISTANCE_FLOOR, KaurTextons, nearest_weights, response_axes
from trainer.textons.leung_malik import SMALL_SIGMAS_PX, leung_malik_bank
from trainer.textons.patches import BLOCK_PATCHES, dense_patches, random_patches, to_pitch
from trainer.textons.somoza import SomozaTextons, weber
from trainer.textons.spherical_kmeans import spherical_kmeans
from trainer.textons.whitening import normalise_patches, whitening_matrix

PITCH = np.array(1.0)


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns)).astype(np.uint8)


def test_to_pitch_means_areas() -> None:
    image = np.array([[0, 4, 10, 10], [8, 4, 30, 30]], np.uint8)
    assert to_pitch(image, 1.0, 1).tolist() == [[4.0, 20.0]]
    assert to_pitch(image, 0.5, 1).tolist() == image.tolist()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((20, 20), np.float32), r"got float32 \[20, 20\]"),
        (np.zeros((20, 20, 3), np.uint8), r"got uint8 \[20, 20, 3\]"),
        (np.zeros((20, 13), np.uint8), "7 rows and columns or more at 1 um, got 10 x 6"),
    ],
)
def test_images_of_another_kind(image: np.ndarray, words: str) -> None:
    with pytest.raises(DataSetError, match=words):
        to_pitch(image, 1.0, 7)


@pytest.mark.parametrize("shape", [(9, 11), (5, 5), (300, 200)])
def test_dense_patches_are_all_patches_in_order(shape: tuple[int, int]) -> None:
    image = noise(*shape).astype(np.float32)
    blocks = list(dense_patches(image, 5))
    rows, columns = shape[0] - 4, shape[1] - 4
    expected = [image[r : r + 5, c : c + 5].ravel() for r in range(rows) for c in range(columns)]
    assert np.array_equal(np.concatenate(blocks), expected)
    assert max(len(block) for block in blocks) <= max(BLOCK_PATCHES, columns)


def test_random_patches_are_patches() -> None:
    image = np.arange(48, dtype=np.float32).reshape(6, 8)
    known = {tuple(patch) for block in dense_patches(image, 5) for patch in block}
    found = random_patches(image, 5, 200, np.random.default_rng(0))
    assert {tuple(patch) for patch in found} == known


def test_patches_normalised_by_hand() -> None:
    normalised = normalise_patches(np.array([[1.0, 1.0, 1.0, 5.0], [7.0, 7.0, 7.0, 7.0]]))
    assert normalised[0] == pytest.approx(np.array([-1, -1, -1, 3]) / (12**0.5 + 1))
    assert normalised[1].tolist() == [0, 0, 0, 0]


def of_variances(*variances: float, n: int = 4000) -> np.ndarray:
    """Give data whose covariance is exactly diagonal, turned into a random basis."""
    rng = np.random.default_rng(3)
    data = rng.normal(size=(n, len(variances)))
    data = np.linalg.qr(data - data.mean(axis=0))[0]
    turn = np.linalg.qr(rng.normal(size=(len(variances), len(variances))))[0]
    return (data * np.sqrt(np.array(variances) * (n - 1))) @ turn


def test_whitened_patches_have_unit_variance_along_kept_directions_only() -> None:
    data = of_variances(8.0, 1.0, 0.6, 0.4)
    for energy, n_kept in ((0.8, 1), (0.85, 2), (0.95, 3), (1.0, 4)):
        whitened = data @ whitening_matrix(data, energy, 0.0)
        variances = np.linalg.eigvalsh(np.cov(whitened, rowvar=False))
        assert variances == pytest.approx([0] * (4 - n_kept) + [1] * n_kept, abs=1e-9)


def test_whitening_with_a_variance_floor() -> None:
    data = of_variances(3.0, 1.0)
    matrix = whitening_matrix(data, 1.0, 1.0)
    assert matrix == pytest.approx(matrix.T)
    assert np.linalg.eigvalsh(np.cov(data @ matrix, rowvar=False)) == pytest.approx([1 / 2, 3 / 4])


def test_spherical_kmeans_finds_directions_whatever_the_lengths() -> None:
    rng = np.random.default_rng(1)
    directions = np.eye(5)[:3] * np.array([[1.0], [1.0], [-1.0]])
    vectors = directions[rng.integers(3, size=600)] * rng.uniform(0.5, 20, (600, 1))
    vectors += rng.normal(scale=0.01, size=vectors.shape)
    for seed in range(20):
        centres = spherical_kmeans(vectors, 3, seed)
        if np.linalg.matrix_rank(centres, tol=0.1) == 3:  # two beginnings may fall in one cluster
            break
    order = np.argsort(np.argmax(np.abs(centres), axis=1))
    assert centres[order] == pytest.approx(directions, abs=0.01)


@given(st.integers(0, 1000), st.booleans())
def test_spherical_centres_are_of_unit_length(seed: int, flat: bool) -> None:
    vectors = np.random.default_rng(seed).normal(size=(30, 4))
    vectors[::2] *= not flat
    centres = spherical_kmeans(vectors, 12, seed)
    assert np.linalg.norm(centres, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    assert np.array_equal(centres, spherical_kmeans(vectors, 12, seed))


@pytest.mark.parametrize("bank", [leung_malik_bank(), leung_malik_bank(5, SMALL_SIGMAS_PX)])
def test_every_filter_has_mean_0_and_absolute_sum_1(bank: np.ndarray) -> None:
    assert len(bank) == 48
    assert np.abs(bank.sum(axis=(1, 2))).max() < 1e-12
    assert np.abs(bank).sum(axis=(1, 2)) == pytest.approx(np.ones(48))


def test_the_bank_has_edges_bars_spots_and_blobs() -> None:
    bank = leung_malik_bank()
    edges, bars, spots, blobs = bank[:18], bank[18:36], bank[36:44], bank[44:]
    turned = np.rot90(bank, 2, axes=(1, 2))
    assert turned[:18] == pytest.approx(-edges, abs=1e-12)
    assert turned[18:] == pytest.approx(bank[18:], abs=1e-12)
    # Six directions, 30 degrees apart: three steps on stands the same filter at a right angle.
    for kind in (edges, bars):
        for scale in kind.reshape(3, 6, 49, 49):
            quarter = np.rot90(scale[0])
            sign = np.sign((quarter * scale[3]).sum())
            assert scale[3] == pytest.approx(sign * quarter, abs=1e-12)
            assert np.abs(scale[1] - scale[0]).max() > 1e-4
    round_ones = np.concatenate([spots, blobs])
    assert np.rot90(round_ones, axes=(1, 2)) == pytest.approx(round_ones, abs=1e-12)
    middle = round_ones[:, 24, 24:]
    assert all(np.argmin(spot) == 0 for spot in middle[:8])
    assert all(np.all(np.diff(blob) < 1e-15) for blob in middle[8:])
    # The ring of a Laplacian of a Gaussian is brightest at twice sigma.
    rings_px = np.argmax(middle[:8], axis=1)
    assert rings_px == pytest.approx([2 * s * k for k in (1, 3) for s in (2**0.5, 2, 8**0.5, 4)], abs=0.6)


def test_derivatives_are_three_times_as_long_as_wide() -> None:
    profile = np.abs(leung_malik_bank()[0])  # an edge along x, sigma sqrt(2) across
    y, x = np.mgrid[-24:25, -24:25]
    along = (profile * x**2).sum() / profile.sum()
    # A Gaussian's own variance along; |y| exp(-y^2 / 2 s^2) has the second moment 2 s^2 across.
    assert along == pytest.approx(9 * 2, rel=0.02)
    assert (profile * y**2).sum() / profile.sum() == pytest.approx(2 * 2, rel=0.05)


def test_weights_of_the_nearest_worked_by_hand() -> None:
    centres = np.array([[1.0], [-2.0], [4.0], [-8.0]], np.float32)
    weights = nearest_weights(np.zeros((1, 1), np.float32), centres, 3)
    assert weights == pytest.approx(np.array([[4, 2, 1, 0]]) / 7)
    on_one = nearest_weights(np.ones((1, 1), np.float32), centres, 2)
    assert on_one == pytest.approx(np.eye(4)[:1], abs=DISTANCE_FLOOR)


@given(st.integers(0, 1000))
def test_eight_nearest_centres_share_a_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    responses, centres = (rng.normal(size=(n, 6)).astype(np.float32) for n in (9, 50))
    weights = nearest_weights(responses, centres)
    distances = np.linalg.norm(responses[:, None] - centres, axis=2)
    assert weights.sum(axis=1) == pytest.approx(np.ones(9), abs=1e-5)
    for row, near in zip(weights, distances, strict=True):
        assert set(np.flatnonzero(row)) == set(np.argsort(near)[:8])
        products = row[row > 0] * near[row > 0]
        assert products == pytest.approx(np.full(8, products[0]), rel=1e-2)


def test_few_axes_keep_the_distances_of_48_responses() -> None:
    patches = noise(40, 25).astype(float)
    bank = leung_malik_bank(5, SMALL_SIGMAS_PX).reshape(48, 25).T
    axes = response_axes()
    assert axes.shape == (25, 24)  # every filter has mean 0: one direction of 25 is lost
    for one, other in zip(patches[::2], patches[1::2], strict=True):
        wanted = np.linalg.norm((one - other) @ bank)
        assert np.linalg.norm((one - other) @ axes) == pytest.approx(wanted, rel=1e-5)


def test_hames_encoding_equals_plain_loops() -> None:
    rng = np.random.default_rng(4)
    whiten = whitening_matrix(normalise_patches(rng.normal(size=(500, 49))))
    centres = spherical_kmeans(rng.normal(size=(500, 49)), 16, 0)
    textons = HamesTextons((whiten @ centres.T).astype(np.float32), PITCH)
    image = noise(40, 50)
    image[10:30, 10:40] = 90  # a flat part: patches without a direction belong to the first texton
    reduced = image.reshape(20, 2, 25, 2).mean(axis=(1, 3))
    found = []
    for r in range(14):
        for c in range(19):
            patch = normalise_patches(reduced[r : r + 7, c : c + 7].reshape(1, 49))[0]
            found.append(int(np.argmax([patch @ whiten @ centre for centre in centres])))
    assert textons.assign(image).tolist() == found
    assert textons.encode(image) == pytest.approx(np.bincount(found, minlength=16) / len(found))


def test_kaur_encoding_equals_plain_loops() -> None:
    bank = leung_malik_bank(5, SMALL_SIGMAS_PX)
    examples = np.random.default_rng(5).normal(size=(20, 25))
    axes = response_axes()
    textons = KaurTextons(axes, (examples @ axes).astype(np.float32), PITCH)
    centres = np.array([[(bank[f].ravel() * one).sum() for f in range(48)] for one in examples])
    image = noise(24, 30)
    reduced = image.reshape(12, 2, 15, 2).mean(axis=(1, 3))
    standard = (reduced - reduced.mean()) / reduced.std()
    histogram = np.zeros(20)
    for r in range(8):
        for c in range(11):
            patch = standard[r : r + 5, c : c + 5]
            responses = np.array([(filter_ * patch).sum() for filter_ in bank])
            distances = np.array([np.linalg.norm(responses - centre) for centre in centres])
            nearest = np.argsort(distances)[:8]
            histogram[nearest] += 1 / distances[nearest] / (1 / distances[nearest]).sum()
    assert textons.encode(image) == pytest.approx(histogram / (8 * 11), abs=1e-5)


def test_somoza_encoding_equals_plain_loops() -> None:
    bank = leung_malik_bank()
    image = noise(104, 106)
    reduced = image.reshape(52, 2, 53, 2).mean(axis=(1, 3))
    standard = (reduced - reduced.mean()) / reduced.std()
    responses = np.zeros((48, 20))
    for pixel in range(20):
        r, c = divmod(pixel, 5)
        window = standard[r : r + 49, c : c + 49]
        responses[:, pixel] = [(filter_ * window).sum() for filter_ in bank]
    sizes = np.linalg.norm(responses, axis=0)
    normalised = responses * np.log(1 + sizes / 0.03) / sizes
    assert weber(responses) == pytest.approx(normalised, rel=1e-6)
    centres = normalised[:, [0, 7, 12, 19]] * 1.1
    found = [
        int(np.argmin([np.linalg.norm(normalised[:, p] - centre) for centre in centres.T])) for p in range(20)
    ]
    assert set(found) == {0, 1, 2, 3}
    textons = SomozaTextons(centres.T.astype(np.float32), PITCH)
    assert textons.assign(image).tolist() == found
    assert textons.encode(image) == pytest.approx(np.bincount(found) / 20)
