from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.errors import DataSetError
from trainer.data.manifest import DataSet, LabelledStack
from trainer.data.split import (
    PARTS,
    check_split,
    draw_split,
    extend_split,
    load_split,
    parsed_shares,
    settle_split,
    z_steps,
)


def a_set(n_patients: int, seed: int = 0) -> DataSet:
    rng = np.random.default_rng(seed)
    stacks = []
    for patient in range(n_patients):
        for site in range(int(rng.integers(1, 4))):
            n_slices = int(rng.integers(10, 60))
            stacks.append(
                LabelledStack(
                    stack=f"{patient}-{site}",
                    patient=f"p{patient}",
                    site=str(site),
                    family=("vivid", "pale")[int(rng.integers(2))],
                    files=(Path("x.tif"),) * n_slices,
                    pages=tuple(range(n_slices)),
                    z_um=np.arange(n_slices) * 3.0,
                    pixel_size_um=0.5,
                    labels=np.sort(rng.integers(0, 3, n_slices)),
                    readings={},
                )
            )
    return DataSet(Path("set"), f"digest-{n_patients}-{seed}", tuple(stacks))


@given(n_patients=st.integers(3, 40), seed=st.integers(0, 10_000))
def test_no_patient_is_in_two_parts_and_none_is_lost(n_patients: int, seed: int) -> None:
    data = a_set(n_patients, seed)
    shares = (245, 61, 198, 60)[: 3 + (n_patients > 3)]
    split = draw_split(data, seed, shares)
    stacks = [split.stack_indices(data, part) for part in PARTS]
    assert sorted(np.concatenate(stacks).tolist()) == list(range(len(data.stacks)))
    patients = [{data.stacks[index].patient for index in part} for part in stacks]
    assert all(part for part in patients[: len(shares)])
    assert sum(map(len, patients)) == len(set.union(*patients)) == n_patients


def test_parts_have_their_shares_and_are_alike() -> None:
    data = a_set(250)
    split = draw_split(data, 3)
    assert split == draw_split(data, 3)
    assert split.patients != draw_split(data, 4).patients
    labels = np.concatenate([stack.labels for stack in data.stacks])
    overall = np.bincount(labels) / len(labels)
    for part, share in zip(PARTS, (245, 61, 198, 0), strict=True):
        if share == 0:
            assert split.patients[part] == ()
            continue
        chosen = [data.stacks[index] for index in split.stack_indices(data, part)]
        assert abs(len(chosen) / len(data.stacks) - share / 504) < 0.01
        own = np.concatenate([stack.labels for stack in chosen])
        np.testing.assert_allclose(np.bincount(own) / len(own), overall, atol=0.02)
        vivid = np.mean([stack.family == "vivid" for stack in chosen])
        assert abs(vivid - np.mean([stack.family == "vivid" for stack in data.stacks])) < 0.05


def test_a_part_of_share_nought_stays_empty() -> None:
    data = a_set(6)
    split = draw_split(data, 0, (4, 1, 0))
    assert split.patients["test"] == ()
    assert split.patients["validation"]


@pytest.mark.parametrize("shares", [(1, 2), (1, -1, 1), (0, 0, 0), (1, np.nan, 1), (1, np.inf, 1)])
def test_impossible_shares_are_refused(shares) -> None:
    with pytest.raises(DataSetError, match="three or four numbers"):
        draw_split(a_set(5), 0, shares)
    with pytest.raises(DataSetError, match="three or four numbers"):
        parsed_shares(",".join(map(str, shares)))


def test_a_split_without_training_stacks_is_refused() -> None:
    with pytest.raises(DataSetError, match="stacks to train on"):
        draw_split(a_set(5), 0, (0, 1, 1))


def test_more_parts_than_patients_are_refused() -> None:
    with pytest.raises(DataSetError, match="as many patients"):
        draw_split(a_set(2), 0)


def test_a_stored_split_comes_back(tmp_path) -> None:
    data = a_set(10)
    split = draw_split(data, 1, (5, 2, 2, 1))
    split.write(tmp_path / "run" / "split.json")
    assert load_split(tmp_path / "run" / "split.json", data) == split


def test_a_leak_a_lost_patient_and_a_change_are_refused(tmp_path) -> None:
    data = a_set(10)
    split = draw_split(data, 1)
    path = tmp_path / "split.json"

    def changed(change) -> None:
        split.write(path)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        load_split(path, data)

    moved = split.patients["test"][0]
    with pytest.raises(DataSetError, match=f"one part only, {moved} is in train and in test"):
        changed(lambda content: content["patients"]["train"].append(moved))
    with pytest.raises(DataSetError, match="1 are in none"):
        changed(lambda content: content["patients"]["test"].remove(moved))

    def swap(content) -> None:
        content["patients"]["test"].remove(moved)
        content["patients"]["train"].append(moved)

    with pytest.raises(DataSetError, match="left as it was drawn"):
        changed(swap)
    split.write(path)
    with pytest.raises(DataSetError, match="drawn from other data"):
        load_split(path, DataSet(data.path, "another digest", data.stacks))
    with pytest.raises(DataSetError, match=r"none\.json cannot be read: No such file or directory$"):
        load_split(tmp_path / "none.json", data)
    path.write_text("{}")
    with pytest.raises(DataSetError, match="JSON file written by this program"):
        load_split(path, data)
    with pytest.raises(DataSetError, match="are in none"):
        check_split(split, a_set(11))


def test_a_run_keeps_its_split(tmp_path: Path) -> None:
    grown = a_set(30)
    begun = DataSet(Path("set"), "digest-begun", tuple(s for s in grown.stacks if int(s.patient[1:]) < 20))
    first, other = tmp_path / "first.json", tmp_path / "other.json"
    draw_split(begun, 3, (10, 5, 0, 5)).write(first)
    draw_split(begun, 4, (10, 5, 0, 5)).write(other)
    cnn, rcn = tmp_path / "cnn", tmp_path / "rcn"
    settled = settle_split(begun, cnn, split=first)
    assert not cnn.exists()  # what is trained writes it, once nothing is in the way any more
    settled.write(cnn / "split.json")
    assert settle_split(begun, cnn, seed=3) == settled
    assert settle_split(begun, cnn, seed=3, shares="10,5,0,5") == settled
    for other_shares in ("10,5,5", "10,5,0,4"):
        with pytest.raises(
            DataSetError, match=r"\(seed 3, shares 10,5,0,5\) is another than one drawn"
        ) as told:
            settle_split(begun, cnn, seed=3, shares=other_shares)
        assert f"with seed 3 and shares {other_shares}" in str(told.value)
    with pytest.raises(
        DataSetError, match="another than one drawn with seed 4 and shares 245,61,198,0: remove"
    ):
        settle_split(begun, cnn, seed=4)
    with pytest.raises(DataSetError, match="a run keeps its split"):
        settle_split(begun, cnn, split=other)
    for nonsense in ("1,2", "1,1,1,1,1", "many"):
        with pytest.raises(DataSetError, match="three or four numbers"):
            settle_split(begun, cnn, seed=3, shares=nonsense)
    assert settle_split(begun, cnn, split=cnn / "split.json", seed=4) == settled
    split = settle_split(grown, rcn, extended=first, new_shares="1,0,0,1")
    split.write(rcn / "split.json")
    assert settle_split(grown, rcn, extended=first, new_shares="1,0,0,1") == split
    with pytest.raises(
        DataSetError, match=r"another than .*first.json extended with seed 0 and shares 1,0,0,0"
    ):
        settle_split(grown, rcn, extended=first, new_shares="1,0,0,0")
    with pytest.raises(DataSetError, match=r"another than .*other.json extended"):
        settle_split(grown, rcn, extended=other, new_shares="1,0,0,1")
    with pytest.raises(DataSetError, match=r"as it is, extended or drawn, got .*first.json and .*first.json"):
        settle_split(grown, tmp_path / "new", split=first, extended=first)
    with pytest.raises(DataSetError, match=r"as it is, extended or drawn, got .*first.json and shares 1,1,1"):
        settle_split(grown, tmp_path / "new", split=first, shares="1,1,1")


def test_z_steps_are_those_of_the_training_stacks() -> None:
    data = a_set(5)
    assert z_steps(data, draw_split(data, 0)) == [3.0, 3.0]


def test_a_set_that_has_grown_keeps_its_patients_where_they_were(tmp_path: Path) -> None:
    grown = a_set(30)
    begun = DataSet(Path("set"), "digest-begun", tuple(s for s in grown.stacks if int(s.patient[1:]) < 20))
    old = draw_split(begun, 3, (10, 5, 0, 5))
    old.write(tmp_path / "split.json")
    split = extend_split(tmp_path / "split.json", grown)
    assert {part: split.patients[part] for part in PARTS[1:]} == {p: old.patients[p] for p in PARTS[1:]}
    new = {f"p{number}" for number in range(20, 30)}
    assert set(split.patients["train"]) == {*old.patients["train"], *new}
    split.write(tmp_path / "grown.json")
    assert load_split(tmp_path / "grown.json", grown) == split
    shared = extend_split(tmp_path / "split.json", grown, 3, (1, 0, 0, 1))
    gained = {part: set(shared.patients[part]) - set(old.patients[part]) for part in PARTS}
    assert set().union(*gained.values()) == new
    assert {part: len(names) for part, names in gained.items()} == {
        "train": 5, "validation": 0, "test": 0, "calibration": 5
    }  # fmt: skip
    with pytest.raises(DataSetError, match="4 parts needs as many patients, set has 1 new ones"):
        extend_split(tmp_path / "split.json", a_set(21), 0, (1, 1, 1, 1))
    with pytest.raises(DataSetError, match=r"lacks 10 of .*grown.json, the first is p20"):
        extend_split(tmp_path / "grown.json", begun)
