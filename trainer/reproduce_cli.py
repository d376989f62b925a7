"""The command `rcm-trainer reproduce`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer

from trainer.options import (  # noqa: TC001 (typer reads the annotations)
    DataOption,
    DeviceOption,
    PrecisionOption,
    SeedOption,
    ThreadsOption,
)


def reproduce(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; what is in it already is taken.")],
    methods: Annotated[
        str | None, typer.Option(help="Plain names of methods joined by commas. [default: all]")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="quick (a part of the stacks), compact (all, small networks) or paper (as published)."
        ),
    ] = "quick",
    stacks: Annotated[
        int | None, typer.Option(help="Stacks to take, 0 for all, instead of the preset's.")
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help="Multiplier of Inception-V3's channel counts, instead of the preset's."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the CNNs' input in pixels, instead of the preset's.")
    ] = None,
    cnn_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the CNNs, instead of the preset's.")
    ] = None,
    rcn_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the recurrent networks, instead of the preset's.")
    ] = None,
    seed: SeedOption = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared slices. [default: DATA/cache]")
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    workers: Annotated[int, typer.Option(help="Worker processes that prepare and encode slices.")] = 2,
) -> None:
    """Train every method of the paper on one data set and report its tables; a killed run resumes."""
    from trainer.data.manifest import load_data_set
    from trainer.methods import METHODS
    from trainer.precision import choose_device, set_threads
    from trainer.reproduce import open_comparison, run_methods
    from trainer.reproduce_presets import preset_of
    from trainer.reproduction_report import write_report
    from trainer.reproduction_scores import reproduction

    names = [name.strip() for name in methods.split(",")] if methods else list(METHODS)
    chosen = choose_device(device)
    set_threads(threads)
    data_set = load_data_set(data)
    comparison = open_comparison(
        data_set,
        preset_of(
            preset,
            seed,
            {"width": width, "size": size, "n_epochs": cnn_epochs},
            {"n_epochs": rcn_epochs},
            stacks,
        ),
        out,
        cache or data_set.path.parent / "cache",
        chosen,
        precision=precision,
        n_workers=workers,
    )
    report = write_report(out, reproduction(comparison, run_methods(comparison, names)))
    typer.echo(f"wrote {report}")
