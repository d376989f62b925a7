"""Whether the two networks take and give what the manifest says, and fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rcm_daemon.bundle.manifest import ESTIMATOR_FILE
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from rcm_daemon.bundle.manifest import Manifest

N_CLASSES = 3
FREE = "free"  # a dimension that must not be baked into the file
ONE = "one"  # the batch: fixed to 1 by the session (provider.py), or dynamic where inference lost its name
Shape = list[int | str]


def check_dimensions(manifest: Manifest, cnn: Any, rcn: Any, folder: Path) -> None:
    """Compare names, types and shapes of both sessions with the manifest.

    Raises
    ------
    BundleError
        Naming every input or output that differs.
    """
    size = manifest.embedding_size
    rcn_shapes: dict[str, Shape] = {"embeddings": [FREE, size], "z_um": [FREE], "weight": [FREE]}
    rcn_inputs: dict[str, Shape] = {name: rcn_shapes[name] for name in manifest.rcn_inputs}
    rcn_outputs: dict[str, Shape] = {"probabilities": [FREE, N_CLASSES]}
    if ESTIMATOR_FILE in manifest.files:
        rcn_outputs["evidence"] = [FREE, N_CLASSES]
    faults = [
        *_compare(
            "cnn.onnx input", cnn.get_inputs(), "tensor(uint8)", {"slices": [ONE, *manifest.cnn_shape]}
        ),
        *_compare("cnn.onnx output", cnn.get_outputs(), "tensor(float)", {"embeddings": [ONE, size]}),
        *_compare("rcn.onnx input", rcn.get_inputs(), "tensor(float)", rcn_inputs),
        *_compare("rcn.onnx output", rcn.get_outputs(), "tensor(float)", rcn_outputs),
    ]
    if faults:
        raise BundleError(
            f"the networks of a bundle must have the dimensions of its manifest, got {'; '.join(faults)} "
            f"in {folder}"
        )


def _compare(where: str, found: list[Any], dtype: str, expected: dict[str, Shape]) -> list[str]:
    given = {value.name: (value.type, list(value.shape)) for value in found}
    faults = [f"an unexpected {where} {name}" for name in given if name not in expected]
    for name, shape in expected.items():
        if name not in given:
            faults.append(f"no {where} {name}")
        elif given[name][0] != dtype or not _fits(given[name][1], shape):
            got = f"{given[name][0]} {_show(given[name][1])}"
            faults.append(f"{where} {name} {got} instead of {dtype} {_show(shape)}")
    return faults


def _fits(found: list[Any], expected: Shape) -> bool:
    return len(found) == len(expected) and all(
        have == want or (want == ONE and have == 1) or (want in (FREE, ONE) and not isinstance(have, int))
        for have, want in zip(found, expected, strict=True)
    )


def _show(shape: list[Any]) -> str:
    return "[" + ", ".join(str(length) if isinstance(length, int) else "any" for length in shape) + "]"
