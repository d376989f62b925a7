from __future__ import annotations

import csv
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tiny_set import COLUMNS, write_rows, write_tiny_set

from rcm_daemon.errors import DataSetError
from trainer.data.manifest import load_data_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_set(tmp_path_factory.mktemp("set"), 3)


def row(folder, **changes):
    values = dict(zip(COLUMNS, [
        "a", "p1", "arm", "plain", str(folder / "stack-0.tif"), 0, 1.0, 0.5, "dej", "dej", "dermis", "dej",
    ], strict=True))  # fmt: skip
    return list({**values, **changes}.values())


def test_reads_stacks_in_order_of_depth(folder, tmp_path) -> None:
    rows = [row(folder, slice=0, z_um=5.0), row(folder, slice=1, z_um=-2.5, label="epidermis")]
    write_rows(tmp_path / "manifest.csv", rows)
    (stack,) = load_data_set(tmp_path).stacks
    assert stack.pages == (1, 0)
    assert stack.z_um.tolist() == [-2.5, 5.0]
    assert stack.labels.tolist() == [0, 1]
    assert stack.readings["reader_2"].tolist() == [2, 2]
    assert stack.files[0].is_absolute()


def test_optional_columns_may_be_missing_or_empty(folder, tmp_path) -> None:
    kept = [name for name in COLUMNS if name not in ("family", "reader_1", "true_label")]
    values = dict(zip(COLUMNS, row(folder, reader_2=""), strict=True))
    write_rows(tmp_path / "manifest.csv", [[values[name] for name in kept]], kept)
    (stack,) = load_data_set(tmp_path).stacks
    assert stack.readings == {}
    assert stack.family == ""


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"label": "basal"}, "label must be one of epidermis, dej, dermis, got 'basal'"),
        ({"label": ""}, "label must be one of"),
        ({"reader_1": "x"}, "reader_1 must be one of"),
        ({"patient": " "}, "has no patient"),
        ({"z_um": "deep"}, "z_um must be a depth, got 'deep'"),
        ({"z_um": "nan"}, "z_um must be a depth"),
        ({"slice": "1.5"}, "slice must be a whole number from 0"),
        ({"slice": "-1"}, "slice must be a whole number from 0"),
        ({"pixel_size_um": "0"}, "pixel_size_um must be above 0"),
        ({"file": "none.tif"}, "none.tif does not exist"),
    ],
)
def test_a_fault_is_named(folder, tmp_path, changes, fault) -> None:
    write_rows(tmp_path / "manifest.csv", [row(folder, **changes)])
    with pytest.raises(DataSetError, match=fault):
        load_data_set(tmp_path)


def test_full_scale_is_one_a_stack_where_it_is_stated(folder, tmp_path) -> None:
    def load(*stated):
        rows = [[*row(folder, slice=k, z_um=k), word] for k, word in enumerate(stated)]
        write_rows(tmp_path / "manifest.csv", rows, [*COLUMNS, "max_value"])
        return load_data_set(tmp_path)

    assert [stack.max_value for stack in load("4095", "4095.0").stacks] == [4095]
    assert [stack.max_value for stack in load("", "0").stacks] == [0]
    with pytest.raises(DataSetError, match="must have one max_value, got 0, 4095"):
        load("", "4095")
    for wrong in ("65536", "4095.5", "-1", "bright", "nan"):
        with pytest.raises(
            DataSetError, match=f"max_value must be a whole number from 0 to 65535, got '{wrong}'"
        ):
            load(wrong)


def test_all_faults_are_listed_at_once(folder, tmp_path) -> None:
    rows = [
        row(folder, slice=0, z_um=0),
        row(folder, slice=0, z_um=3),
        row(folder, slice=1, z_um=3),
        row(folder, slice=2, z_um=6, patient="p2"),
        row(folder, slice=3, z_um=9, pixel_size_um=1),
        row(folder, slice=4, z_um="?", label="?"),
    ]
    write_rows(tmp_path / "manifest.csv", rows)
    with pytest.raises(DataSetError) as refusal:
        load_data_set(tmp_path)
    for fault in (
        "row 3 repeats page 0 of stack-0.tif",
        "row 4 repeats z 3.0 um of stack a, first in row 3",
        "must have one patient, got p1, p2",
        "must have one pixel_size_um, got 0.5, 1.0",
        "row 7: z_um must be",
        "row 7: label must be",
    ):
        assert fault in str(refusal.value)


def test_missing_columns_and_files_are_said(tmp_path) -> None:
    with pytest.raises(DataSetError, match=r"manifest\.csv cannot be read"):
        load_data_set(tmp_path)
    (tmp_path / "manifest.csv").write_text("stack,patient\n")
    with pytest.raises(DataSetError, match="lacks site, file, slice"):
        load_data_set(tmp_path)
    write_rows(tmp_path / "manifest.csv", [])
    with pytest.raises(DataSetError, match="it has no rows"):
        load_data_set(tmp_path)


def test_a_parquet_manifest_is_the_same_data_set(folder, tmp_path) -> None:
    """Written with types, as a data frame is, not with text."""
    data = load_data_set(folder)
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {"slice": int, "z_um": float, "pixel_size_um": float}
    for row in rows:
        row |= {name: kind(row[name]) for name, kind in kinds.items()}
        row |= {"file": str(folder / row["file"]), "reader_1": row["reader_1"] or None}
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    same = load_data_set(tmp_path)
    assert same.path == tmp_path / "manifest.parquet"
    for stack, other in zip(data.stacks, same.stacks, strict=True):
        assert (stack.stack, stack.files, stack.pages) == (other.stack, other.files, other.pages)
        assert stack.z_um.tolist() == other.z_um.tolist()
        assert stack.labels.tolist() == other.labels.tolist()
    assert same.digest == load_data_set(tmp_path / "manifest.parquet").digest != data.digest
    rows[2]["label"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    with pytest.raises(DataSetError, match="row 3: label must be one of epidermis, dej, dermis, got ''"):
        load_data_set(tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataSetError, match=r"manifest\.parquet cannot be read"):
        load_data_set(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataSetError, match=r"pip install \"rcm-daemon\[parquet\]\""):
        load_data_set(tmp_path / "manifest.parquet")


def test_the_digest_follows_the_rows_and_the_files(folder, tmp_path) -> None:
    other = write_tiny_set(tmp_path / "other", 3)
    first = load_data_set(folder)
    assert first.digest == load_data_set(folder / "manifest.csv").digest == load_data_set(other).digest
    with (other / "stack-1.tif").open("ab") as file:
        file.write(b" ")
    assert load_data_set(other).digest != first.digest


def test_rows_of_all_slices(folder) -> None:
    data = load_data_set(folder)
    assert np.diff(data.starts).tolist() == [stack.n_slices for stack in data.stacks]
    assert data.n_slices == data.starts[-1]
    assert data.patients == ("patient-0", "patient-1")
    assert not data.is_phantom
