"""`rcm-trainer import`: what it writes trains as it is, and everything in the way is said at once."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from stack_files import bmp, grey_stack, write_imagej, write_images, write_plain, write_vivastack
from typer.testing import CliRunner

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError
from trainer import cli
from trainer.data.importing import import_set
from trainer.data.importing_labels import parse_word_map
from trainer.data.manifest import load_data_set
from trainer.data.prepared import fields_of_stack

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.data.importing import ImportedSet

COLUMNS = ["stack", "patient", "site", "slice", "label"]
FIRST, SECOND = "p1/arm/VivaStack #1", "p2/leg/VivaStack #3"


def stack_of(n: int, seed: int, rows: int = 40, columns: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, rows, columns)).astype(np.uint8)


def write_labels(path: Path, rows: list[list[Any]], columns: list[str] = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def rows_of(stack: str, patient: str, site: str, *words: str) -> list[list[Any]]:
    return [[stack, patient, site, index, word] for index, word in enumerate(words)]


@pytest.fixture
def tiffs(tmp_path: Path) -> Path:
    """Two TIFF stacks of four slices and a folder of three images; labels are written by each test."""
    root = tmp_path / "stacks"
    root.mkdir()
    write_imagej(root / "a.tif", stack_of(4, 0))
    write_imagej(root / "b.tif", stack_of(4, 1))
    write_images(root / "c", stack_of(3, 2))
    return root


FOUR = ("epidermis", "epidermis", "dej", "dermis")
WHOLE = [
    *rows_of("a.tif", "p1", "arm", *FOUR),
    *rows_of("b.tif", "p2", "", *FOUR),
    *rows_of("c", "p3", "", "epidermis", "dej", "dermis"),
]


def take(root: Path, rows: list[list[Any]], columns: list[str] = COLUMNS, **options: Any) -> ImportedSet:
    options = {"z_step_um": 3.0, "pixel_size_um": 0.5} | options
    labels = write_labels(root.parent / "labels.csv", rows, columns)
    return import_set(root, labels, root.parent / "set", **options)


def refusal(root: Path, rows: list[list[Any]], columns: list[str] = COLUMNS, **options: Any) -> str:
    with pytest.raises(DataSetError) as caught:
        take(root, rows, columns, **options)
    assert "\n" not in str(caught.value)
    assert not (root.parent / "set").exists()
    return str(caught.value)


def viva_tree(root: Path) -> tuple[np.ndarray, np.ndarray]:
    stacks = grey_stack(3, 1000, 1000), stack_of(2, 9, 1000, 1000)
    for name, stack in zip((FIRST, SECOND), stacks, strict=True):
        (root / name).mkdir(parents=True)
        write_vivastack(root / name, stack)
    return stacks


def test_a_vivascope_export_becomes_a_data_set(tmp_path: Path) -> None:
    root = tmp_path / "export"
    first, second = viva_tree(root)
    rows = [
        *rows_of(FIRST, "anna", "arm", "Stratum  Corneum", "viable epidermis", "DEJ"),
        *rows_of(SECOND, "bert", "leg", "viable epidermis", "papillary dermis"),
    ]
    words = ["stratum corneum=epidermis", "viable epidermis=epidermis", "Papillary Dermis=dermis"]
    done = take(root, rows, word_map=words, z_step_um=4.5, pixel_size_um=None)
    assert (done.n_stacks, done.n_patients, done.warnings) == (2, 2, ())
    assert done.n_slices == {"epidermis": 3, "dej": 1, "dermis": 1}
    data = load_data_set(tmp_path / "set")
    assert data.path == done.manifest
    assert data.patients == ("anna", "bert")
    assert [stack.site for stack in data.stacks] == ["arm", "leg"]
    one, other = data.stacks
    assert one.z_um.tolist() == [0, 4.5, 9]
    assert one.pixel_size_um == 0.5
    assert one.labels.tolist() == [0, 0, 1]
    assert other.labels.tolist() == [0, 2]
    # The captions are gone, and what is trained on are the frames as they were exported.
    for stack, frames in ((one, first), (other, second)):
        assert np.array_equal(list(fields_of_stack(stack)), frames)


def test_tiffs_and_image_folders_become_a_data_set(tiffs: Path) -> None:
    done = take(tiffs, WHOLE)
    data = load_data_set(done.manifest)
    assert [stack.stack for stack in data.stacks] == ["a.tif", "b.tif", "c"]
    assert [stack.n_slices for stack in data.stacks] == [4, 4, 3]
    # 0.5 um a pixel, padded to the field: the image itself lies in its middle.
    (field, *_) = fields_of_stack(data.stacks[2])
    assert np.array_equal(field[480:520, 472:528], stack_of(3, 2)[0])


def test_slices_of_a_12_bit_camera_are_named_and_read_by_its_full_scale(tiffs: Path) -> None:
    grey = stack_of(4, 0)
    write_imagej(tiffs / "a.tif", np.round(grey * (4095 / 255)).astype(np.uint16))
    (warning,) = take(tiffs, WHOLE[:4]).warnings[:1]
    assert "far below 65535 in a.tif (at most 4095)" in warning
    assert "--max-value" in warning
    done = take(tiffs, WHOLE[:4], max_value=4095)
    assert done.warnings == ("without labels, so left out: b.tif, c",)
    (stack,) = load_data_set(done.manifest).stacks
    assert stack.max_value == 4095
    (field, *_) = fields_of_stack(stack)
    assert np.array_equal(field[480:520, 472:528], grey[0])
    with pytest.raises(DataSetError, match=r"--max-value of uint8 slices must be 1 to 255, got 4095"):
        take(tiffs, WHOLE[4:8], max_value=4095)


def test_what_the_files_state_is_taken(tiffs: Path) -> None:
    done = take(tiffs, WHOLE[:8], z_step_um=None, pixel_size_um=None)
    (stack, _) = load_data_set(done.manifest).stacks
    assert stack.z_um.tolist() == [0, 3, 6, 9]
    assert stack.pixel_size_um == 0.5
    assert done.warnings == ("without labels, so left out: c",)


def test_depths_and_readings_of_the_csv(tiffs: Path) -> None:
    columns = [*COLUMNS, "z_um", "reader_1", "reader_2"]
    rows = [
        [*row, z_um, first, second]
        for row, z_um, first, second in zip(
            rows_of("c", "p", "", "dermis", "dej", "epidermis"),
            (7.25, 2, -3.5), ("dermis", "dej", "dej"), ("DEJ", "", "epidermis"), strict=True,
        )
    ]  # fmt: skip
    done = take(tiffs, rows, columns, z_step_um=None)
    (stack,) = load_data_set(done.manifest).stacks
    assert stack.z_um.tolist() == [-3.5, 2, 7.25]
    assert stack.pages == (2, 1, 0)
    assert stack.labels.tolist() == [0, 1, 2]
    assert {name: labels.tolist() for name, labels in stack.readings.items()} == {"reader_1": [1, 1, 2]}
    assert "dermis,dej" in done.manifest.read_text()


def test_every_fault_is_listed_at_once(tiffs: Path) -> None:
    (tiffs / "cut.tif").write_bytes((tiffs / "a.tif").read_bytes()[:3000])
    write_imagej(tiffs / "twin.tif", stack_of(4, 0)[::-1])
    rows = [
        *rows_of("a.tif", "p1", "arm", "epidermis", "spinosum", "spinosum", "basale"),
        *rows_of("b.tif", "", "", *FOUR[:2]),
        ["b.tif", "", "", 7, "dermis"],
        ["b.tif", "", "", 0, "dermis"],
        *rows_of("c", "p3", "arm", "epidermis", "dej"),
        ["c", "p4", "leg", 2, "dermis"],
        ["c", "p4", "leg", 1.5, "dermis"],
        *rows_of("cut.tif", "p5", "", *FOUR),
        *rows_of("gone.tif", "p5", "", *FOUR),
        *rows_of("twin.tif", "p6", "", *FOUR),
        ["../a.tif", "p6", "", 0, "dej"],
    ]
    said = refusal(tiffs, rows, word_map=["corneum:epidermis", "x=fat", "y=dej", "Y = dermis"])
    for fault in (
        '--map must be "word=stratum" with a stratum of epidermis, dej, dermis, got "corneum:epidermis"',
        'got "x=fat"',
        '--map must give a word one stratum, got two for "Y"',
        "label must be one of epidermis, dej, dermis, y (give others with --map), "
        "got 'spinosum' (2 rows), 'basale' (1 row)",
        "stack b.tif has no patient",
        "every slice needs a label, stack b.tif of 4 slices has none for slices 2-3",
        "stack b.tif has 4 slices, but there are labels for slice 7",
        "row 9 repeats slice 0 of stack b.tif, first in row 6",
        "stack c must have one patient, got p3, p4",
        "stack c must have one site, got arm, leg",
        "row 13: slice must be a whole number from 0, got '1.5'",
        "cut.tif is cut short or damaged",
        "found nothing at",
        "an image must come once, 4 images came again: slice 0 of a.tif is slice 3 of twin.tif",
        "row 26: stack must be a path below the imported folder, got '../a.tif'",
    ):
        assert fault in said


def test_of_a_thousand_faulty_rows_a_few_are_named(tiffs: Path) -> None:
    rows = [["a.tif", "p", "", "x", "dej"]] * 1000
    said = refusal(tiffs, [*rows, *rows_of("b.tif", "", "", *FOUR)])
    assert (
        "row 6: slice must be a whole number from 0, got 'x' and 995 more; stack b.tif has no patient" in said
    )
    assert "row 7" not in said
    many = [row for number in range(99) for row in rows_of(f"gone-{number}.tif", "", "", "dej")]
    assert " and 80 more" in refusal(tiffs, many)
    words = [["a.tif", "p", "", number, f"word-{number}"] for number in range(99)]
    assert "'word-4' (1 row) and 94 more" in refusal(tiffs, words)


def test_slices_counted_from_one_are_guessed(tiffs: Path) -> None:
    rows = [[*row[:3], row[3] + 1, row[4]] for row in rows_of("a.tif", "p", "", *FOUR)]
    said = refusal(tiffs, rows)
    assert "has none for slice 0 (slices are numbered from 0)" in said
    assert "there are labels for slice 4 (slices are numbered from 0)" in said


def test_labels_that_run_backwards_are_kept_but_named(tiffs: Path) -> None:
    done = take(tiffs, rows_of("a.tif", "p", "", "dej", "epidermis", "dermis", "epidermis"))
    assert done.warnings[0] == (
        "labels of stack a.tif run backwards with depth at slice 1 (epidermis below dej), "
        "slice 3 (epidermis below dermis)"
    )
    (stack,) = load_data_set(done.manifest).stacks
    assert stack.labels.tolist() == [1, 0, 2, 0]
    # Told by depth, not by number: from the last slice up, the same labels run as they should.
    columns = [*COLUMNS, "z_um"]
    rows = [[*row, -row[3]] for row in rows_of("a.tif", "p", "", "dermis", "dej", "dej", "epidermis")]
    done = take(tiffs, rows, columns)
    assert not any("backwards" in warning for warning in done.warnings)


def test_mixed_pitch(tiffs: Path) -> None:
    write_imagej(tiffs / "wide.tif", stack_of(2, 5), resolution=(1.0, 1.0))
    rows = [*WHOLE[:8], *rows_of("wide.tif", "p9", "", "dej", "dermis")]
    said = refusal(tiffs, rows, pixel_size_um=None)
    assert "all stacks must have one pitch, got 0.5 um in a.tif, b.tif, 1 um in wide.tif" in said
    data = load_data_set(take(tiffs, rows, pixel_size_um=1.0).manifest)
    assert {stack.pixel_size_um for stack in data.stacks} == {1.0}
    write_imagej(tiffs / "wide.tif", stack_of(2, 5), resolution=(1.9999, 1.9999))  # as good as 0.5 um
    data = load_data_set(take(tiffs, rows, pixel_size_um=None).manifest)
    assert {round(stack.pixel_size_um, 3) for stack in data.stacks} == {0.5}


def test_an_image_twice_in_one_stack(tiffs: Path) -> None:
    stack = stack_of(4, 8)
    stack[3] = stack[1]
    write_imagej(tiffs / "a.tif", stack)
    said = refusal(tiffs, WHOLE)
    assert said.endswith("an image must come once, 1 image came again: slice 1 of a.tif is slice 3 of a.tif")
    stack[:] = np.array([0, 0, 7, 9])[:, None, None]  # a shut laser is no doubled image
    stack[2, 0, 0] = 9
    write_imagej(tiffs / "a.tif", stack)
    assert take(tiffs, WHOLE).warnings == ("slices of one grey level only in stack a.tif: 0-1, 3",)


@pytest.mark.parametrize(
    ("unstated", "words"),
    [
        ("z_step_um", "the spacing of slices must be known"),
        ("pixel_size_um", "the size of a pixel must be known"),
    ],
)
def test_a_spacing_or_pitch_that_nobody_states(tiffs: Path, unstated: str, words: str) -> None:
    write_plain(tiffs / "b.tif", stack_of(4, 1))
    said = refusal(tiffs, WHOLE, **{unstated: None})
    assert f"{words}, but {tiffs / 'b.tif'} does not state" in said  # a.tif says both
    assert "(1 more alike: c)" in said
    assert said.count(words) == 1


def test_a_folder_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=rf"there is none at {tmp_path / 'nowhere'}$"):
        import_set(tmp_path / "nowhere", tmp_path / "labels.csv", tmp_path / "out")


def test_a_vivastack_with_a_frame_missing_or_damaged(tmp_path: Path) -> None:
    root = tmp_path / "export"
    viva_tree(root)
    (root / FIRST / "v0000001.bmp").unlink()
    frame = root / SECOND / "v0000001.bmp"
    ramp = np.zeros((256, 3), np.uint8)
    ramp[:, 0] = 200
    frame.write_bytes(bmp(np.arange(1045000, dtype=np.uint32).astype(np.uint8).reshape(1045, 1000), ramp))
    rows = [*rows_of(FIRST, "p", "", *STRATA), *rows_of(SECOND, "p", "", "dej", "dermis")]
    said = refusal(root, rows, pixel_size_um=None)
    assert "v0000001.bmp is missing among 2 frames" in said
    assert "a palette must hold greys only" in said


@pytest.mark.parametrize(
    ("z_um", "words"),
    [
        (
            ["0", "", "6", "9"],
            "z_um must stand for all slices of a stack or none, stack a.tif has none for slice 1",
        ),
        (
            ["0", "3", "3", "9"],
            "two slices of a stack must not have one z_um, stack a.tif has 3 um for slices 1-2",
        ),
        (["0", "3", "deep", "9"], "row 4: z_um must be a depth or empty, got 'deep'"),
    ],
)
def test_depths_that_cannot_be_used(tiffs: Path, z_um: list[str], words: str) -> None:
    rows = [[*row, z] for row, z in zip(rows_of("a.tif", "p", "", *FOUR), z_um, strict=True)]
    assert words in refusal(tiffs, rows, [*COLUMNS, "z_um"])


def test_labels_that_cannot_be_read(tiffs: Path) -> None:
    with pytest.raises(DataSetError, match=r"none\.csv cannot be read: No such file or directory$"):
        import_set(tiffs, tiffs / "none.csv", tiffs.parent / "set")
    assert "lacks patient, slice" in refusal(tiffs, [["a.tif", "dej"]], ["stack", "label"])
    said = refusal(tiffs, [], ["stack;patient;slice;label"])
    assert said.endswith("its columns, as commas separate them: stack;patient;slice;label")
    assert "row 2: slice must be a whole number from 0, got ''" in refusal(tiffs, [["a.tif", "p"]])
    assert "has no rows" in refusal(tiffs, [])
    binary = tiffs.parent / "labels.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataSetError, match=r"cannot be read: it is not in UTF-8$"):
        import_set(tiffs, binary, tiffs.parent / "set")


def test_an_import_does_not_pass_for_phantoms(tiffs: Path) -> None:
    (tiffs / "stacks.csv").write_text("stack\n")
    labels = write_labels(tiffs.parent / "labels.csv", WHOLE)
    with pytest.raises(DataSetError, match="must not lie among phantoms"):
        import_set(tiffs, labels, tiffs, z_step_um=3.0, pixel_size_um=0.5)
    assert not (tiffs / "manifest.csv").exists()


def test_words_stand_for_strata() -> None:
    faults: list[str] = []
    words = parse_word_map(["a = b=dej", "Stratum  Spinosum=EPIDERMIS", "dermis=dej"], faults)
    assert faults == []
    assert words == {
        "epidermis": "epidermis",
        "dej": "dej",
        "a = b": "dej",
        "stratum spinosum": "epidermis",
        "dermis": "dej",
    }


def test_the_command(tiffs: Path) -> None:
    labels = write_labels(tiffs.parent / "labels.csv", [*WHOLE[:7], ["b.tif", "p2", "", 3, "top"]])
    out = tiffs.parent / "mine.csv"
    command = ["import", str(tiffs), "--labels", str(labels), "--out", str(out), "--z-step-um", "2"]
    refused = CliRunner().invoke(cli.app, command)
    assert isinstance(refused.exception, DataSetError)
    done = CliRunner().invoke(cli.app, [*command, "--map", "top=epidermis"])
    assert done.exit_code == 0, done.output
    assert f"wrote {out}: 2 stacks of 2 patients; slices: 5 epidermis, 2 dej, 1 dermis" in done.stdout
    assert "warning: labels of stack b.tif run backwards" in done.stderr
    assert "warning: without labels, so left out: c" in done.stderr
    assert [stack.z_um[1] for stack in load_data_set(out).stacks] == [2, 2]
