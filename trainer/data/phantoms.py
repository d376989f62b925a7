"""Write data sets of phantom stacks: TIFFs, the slice manifest, and the table of stacks with the truth."""

from __future__ import annotations

import csv
import json
import os
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import tifffile

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError
from rcm_daemon.simulator import FAMILIES, TRAINING_FAMILIES, Phantom, make_phantom
from trainer.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MANIFEST_COLUMNS = (
    "stack", "patient", "site", "family", "file", "slice", "z_um", "pixel_size_um",
    "label", "reader_1", "reader_2", "true_label",
)  # fmt: skip
STACK_COLUMNS = (
    "stack", "patient", "site", "family", "seed", "lesional", "n_slices", "z_step_um",
    "epidermis_dej_um", "dej_dermis_um", "true_epidermis_dej_um", "true_dej_dermis_um",
    "reader_1_epidermis_dej_um", "reader_1_dej_dermis_um",
    "reader_2_epidermis_dej_um", "reader_2_dej_dermis_um",
)  # fmt: skip
PARAMETERS_SCHEMA = "rcm-phantom-set-1"

_STACK_SEED, _PATIENT_SEED = 0, 1


@dataclass(frozen=True)
class SetParameters:
    """What the pixels of a set follow from; kept in ``parameters.json`` so that a restart can tell.

    Attributes
    ----------
    seed, n_stacks
        Seed of the set and number of its stacks.
    rows, columns, pixel_size_um
        Slices.
    families
        Families drawn from, with equal shares.
    stacks_per_patient
        Mean number of stacks (sites) of one patient.
    z_step_um
        Step of all stacks; None draws one for each.
    """

    seed: int
    n_stacks: int
    rows: int
    columns: int
    pixel_size_um: float
    families: tuple[str, ...]
    stacks_per_patient: float
    schema: str = PARAMETERS_SCHEMA
    z_step_um: float | None = None


@dataclass(frozen=True)
class StackPlan:
    """One stack of a set before it is rendered."""

    number: int
    seed: int
    patient_number: int
    patient_seed: int
    family: str

    @property
    def name(self) -> str:
        """Name of the stack and, with ``.tif``, of its file."""
        return f"stack-{self.number:04d}"


def plan_stacks(parameters: SetParameters) -> list[StackPlan]:
    """Seeds, patients and families of all stacks; the first stacks do not depend on how many follow."""
    plans: list[StackPlan] = []
    patient = -1
    left = 0
    patient_rng = np.random.default_rng([parameters.seed, _PATIENT_SEED])
    stack_rng = np.random.default_rng([parameters.seed, _STACK_SEED])
    patient_seed = 0
    for number in range(parameters.n_stacks):
        if left == 0:
            patient += 1
            left = 1 + int(patient_rng.poisson(max(parameters.stacks_per_patient - 1.0, 0.0)))
            patient_seed = int(patient_rng.integers(1 << 31))
        left -= 1
        family = parameters.families[int(stack_rng.integers(len(parameters.families)))]
        plans.append(StackPlan(number, int(stack_rng.integers(1 << 31)), patient, patient_seed, family))
    return plans


def build_stack(plan: StackPlan, parameters: SetParameters) -> Phantom:
    """Build the phantom of one planned stack."""
    return make_phantom(
        plan.seed,
        shape=(parameters.rows, parameters.columns),
        pixel_size_um=parameters.pixel_size_um,
        family=plan.family,
        patient_seed=plan.patient_seed,
        z_step_um=parameters.z_step_um,
        stack_id=plan.name,
    )


def write_stack(path: Path, phantom: Phantom) -> None:
    """Write a phantom as an ImageJ TIFF with z spacing and pitch, whole or not at all.

    ImageJ's format has no place for the depth of the first slice: that is in the manifest.
    """
    # A file under its final name is always finished: an interrupted run leaves only the temporary one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    slices = np.stack([phantom.render(index) for index in range(len(phantom))])
    per_um = 1.0 / phantom.pixel_size_um
    try:
        tifffile.imwrite(
            temporary,
            slices,
            imagej=True,
            resolution=(per_um, per_um),
            metadata={"axes": "ZYX", "spacing": phantom.z_step_um, "unit": "um"},
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _manifest_rows(plan: StackPlan, phantom: Phantom, file: str) -> list[dict[str, str]]:
    readers = phantom.reader_labels
    return [
        {
            "stack": plan.name,
            "patient": f"patient-{plan.patient_number:04d}",
            "site": phantom.site,
            "family": phantom.family,
            "file": file,
            "slice": str(index),
            "z_um": f"{phantom.z_um[index]:.3f}",
            "pixel_size_um": f"{phantom.pixel_size_um:g}",
            "label": STRATA[phantom.labels[index]],
            "reader_1": STRATA[readers[0, index]],
            "reader_2": STRATA[readers[1, index]],
            "true_label": STRATA[phantom.true_labels[index]],
        }
        for index in range(len(phantom))
    ]


def _stack_row(plan: StackPlan, phantom: Phantom) -> dict[str, str]:
    row = {
        "stack": plan.name,
        "patient": f"patient-{plan.patient_number:04d}",
        "site": phantom.site,
        "family": phantom.family,
        "seed": str(plan.seed),
        "lesional": str(int(phantom.lesional)),
        "n_slices": str(len(phantom)),
        "z_step_um": f"{phantom.z_step_um:g}",
    }
    first, second = phantom.reader_boundaries_um
    pairs = (
        ("", phantom.boundaries_um),
        ("true_", phantom.true_boundaries_um),
        ("reader_1_", first),
        ("reader_2_", second),
    )
    for prefix, boundaries in pairs:
        row[f"{prefix}epidermis_dej_um"] = f"{float(boundaries[0]):.3f}"
        row[f"{prefix}dej_dermis_um"] = f"{float(boundaries[1]):.3f}"
    return row


_Job = tuple[StackPlan, SetParameters, "Path"]
_Done = tuple[int, dict[str, str], list[dict[str, str]]]


def _finished(path: Path, n_slices: int, parameters: SetParameters) -> bool:
    """Whether a file is there and holds as many bytes of pixels as the stack should."""
    return path.is_file() and path.stat().st_size >= n_slices * parameters.rows * parameters.columns


def _make(job: _Job) -> _Done:
    plan, parameters, out = job
    cv2.setNumThreads(1)
    record = out / "stacks" / f"{plan.name}.json"
    path = out / "stacks" / f"{plan.name}.tif"
    if record.is_file():  # written after its TIFF: spares rebuilding the tissue on a restart
        known = json.loads(record.read_text(encoding="utf-8"))
        if _finished(path, int(known["stack"]["n_slices"]), parameters):
            return plan.number, known["stack"], known["slices"]
    phantom = build_stack(plan, parameters)
    write_stack(path, phantom)
    stack, slices = _stack_row(plan, phantom), _manifest_rows(plan, phantom, f"stacks/{plan.name}.tif")
    _write_text(record, json.dumps({"stack": stack, "slices": slices}))
    return plan.number, stack, slices


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _claim(out: Path, parameters: SetParameters) -> None:
    """Mark the folder as this set's, or refuse it."""
    path = out / "parameters.json"
    wanted: dict[str, Any] = json.loads(json.dumps(asdict(parameters)))
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataSetError(
                f"{path} must be the JSON a phantom set was begun with, but is not JSON"
            ) from error
        other = (
            {k: v for k, v in found.items() if wanted.get(k) != v} if isinstance(found, dict) else {"": found}
        )
        if other or found.keys() != wanted.keys():
            names = ", ".join(f"{k}={v!r} there, {wanted.get(k)!r} asked for" for k, v in other.items())
            raise DataSetError(
                f"a phantom set is resumed with the parameters it was begun with, but {path} differs: "
                f"{names or 'other keys'}; choose another folder or the same parameters"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise DataSetError(
            f"a phantom set needs an empty folder or one it has begun itself, but {out} holds other files"
        )
    (out / "stacks").mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(wanted, indent=2) + "\n")


def _results(jobs: list[_Job], n_workers: int) -> Iterator[_Done]:
    if n_workers <= 1:
        yield from map(_make, jobs)
        return
    with worker_pool(n_workers) as pool:
        pending = [pool.submit(_make, job) for job in jobs]
        try:
            for finished in as_completed(pending):
                yield finished.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write_phantom_set(
    out: Path,
    n_stacks: int = 504,
    *,
    seed: int = 0,
    shape: tuple[int, int] = (500, 500),
    pixel_size_um: float = 1.0,
    families: Sequence[str] = TRAINING_FAMILIES,
    n_workers: int = 1,
    stacks_per_patient: float = 2.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set of phantom stacks, or finish one that was interrupted.

    The result depends on the arguments only, not on the number of workers or on interruptions.

    Parameters
    ----------
    out
        Folder of the set: ``manifest.csv``, ``stacks.csv``, ``parameters.json`` and ``stacks/``.
    n_stacks, seed
        Number of stacks, and the seed all of them follow from.
    shape, pixel_size_um
        Rows and columns of a slice, and their pitch in um.
    families
        Families to draw from with equal shares.
    n_workers
        Processes; 1 works in this one.
    stacks_per_patient
        Mean number of stacks of one patient, at least 1.
    progress
        Called with the number of finished stacks and of all stacks.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    DataSetError
        If an argument is out of range, or the folder holds something else or a set of other parameters.
    """
    unknown = [name for name in families if name not in FAMILIES]
    if unknown or not families:
        raise DataSetError(
            f"phantom families must be among {', '.join(FAMILIES)}, got {', '.join(unknown) or 'none'}"
        )
    if n_stacks < 1 or seed < 0 or stacks_per_patient < 1 or min(shape) < 32 or pixel_size_um <= 0:
        raise DataSetError(
            "a phantom set needs 1 stack or more, a seed of 0 or more, 1 stack or more a patient, 32 rows "
            f"and columns or more and a pitch above 0 um, got n_stacks={n_stacks}, seed={seed}, "
            f"stacks_per_patient={stacks_per_patient}, shape={shape}, pixel_size_um={pixel_size_um}"
        )
    parameters = SetParameters(
        seed, n_stacks, shape[0], shape[1], float(pixel_size_um), tuple(families), float(stacks_per_patient)
    )
    _claim(out, parameters)
    jobs: list[_Job] = [(plan, parameters, out) for plan in plan_stacks(parameters)]
    done: list[_Done] = []
    for result in _results(jobs, n_workers):
        done.append(result)
        if progress is not None:
            progress(len(done), n_stacks)
    done.sort(key=lambda item: item[0])
    _write_table(out / "stacks.csv", STACK_COLUMNS, [stack for _, stack, _ in done])
    _write_table(out / "manifest.csv", MANIFEST_COLUMNS, [row for _, _, rows in done for row in rows])
    return out / "manifest.csv"
