"""The command `rcm-trainer quantise`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated, Literal

import typer

from trainer.options import SeedOption  # noqa: TC001 (typer reads the annotations)


def quantise(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[Path, typer.Option(help="Data set it was trained on: a manifest, or its folder.")],
    split: Annotated[Path, typer.Option(help="The split.json of that training.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle with the variant in it.")],
    to: Annotated[
        Literal["int8", "fp16"], typer.Option(help="int8 for CPUs, fp16 for GPUs, where it gains little.")
    ] = "int8",
    slices: Annotated[int, typer.Option(min=1, help="Training slices that ranges are taken from.")] = 256,
    seed: SeedOption = 0,
    workers: Annotated[int, typer.Option(help="Processes that label validation stacks.")] = 2,
) -> None:
    """Add a variant of the CNN to a bundle, unless it costs more than 0.3 points of validation accuracy."""
    from trainer.data.manifest import load_data_set
    from trainer.data.split import load_split
    from trainer.quantise import add_variant

    data_set = load_data_set(data)
    manifest = add_variant(
        bundle,
        out,
        to,
        data_set,
        load_split(split, data_set),
        n_calibration=slices,
        seed=seed,
        n_workers=workers,
    )
    variant = manifest.variants[to]
    n_bytes = sum(file.n_bytes for file in manifest.files.values())
    typer.echo(
        f"wrote {out}, {n_bytes / 1e6:.1f} MB, with {to}: accuracy {variant.accuracy:.4f} instead of "
        f"{variant.accuracy_fp32:.4f}, same label in {variant.agreement:.2%} of "
        f"{variant.n_validation_slices} slices"
    )
