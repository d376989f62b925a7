"""Commands of `rcm-trainer`: phantom, import, cnn, rcn, calibrate, export, quantise, evaluate, reproduce.

torch and the modules that need it are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer

from rcm_daemon import __version__
from rcm_daemon.errors import RcmError
from trainer.calibrate_cli import calibrate
from trainer.cnn_cli import cnn
from trainer.evaluate_cli import evaluate
from trainer.options import SeedOption, WorkersOption  # noqa: TC001 (typer reads the annotations)
from trainer.quantise_cli import quantise
from trainer.rcn_cli import rcn
from trainer.reproduce_cli import reproduce

app = typer.Typer(
    help="Train, export and evaluate networks that label skin strata in reflectance confocal stacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run() -> None:
    """Run the command line; a refusal is one sentence on stderr and the exit code of its kind."""
    try:
        app()
    except RcmError as error:
        print(f"rcm-trainer: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"rcm-trainer {__version__}")
        raise typer.Exit


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder of the set; an interrupted one is finished.")],
    stacks: Annotated[int, typer.Option(help="Number of stacks.")] = 504,
    seed: SeedOption = 0,
    side: Annotated[int, typer.Option(help="Rows and columns of a slice.")] = 500,
    pixel_size_um: Annotated[float, typer.Option(help="Pitch of a pixel in um.")] = 1.0,
    family: Annotated[
        list[str] | None, typer.Option(help="Family to draw from; repeatable. [default: training families]")
    ] = None,
    stacks_per_patient: Annotated[float, typer.Option(help="Mean number of stacks of one patient.")] = 2.0,
    workers: WorkersOption = 2,
) -> None:
    """Write a data set of phantom stacks: TIFFs, manifest.csv and stacks.csv."""
    from rcm_daemon.simulator import TRAINING_FAMILIES
    from trainer.data.agreement import agreement_report
    from trainer.data.phantoms import write_phantom_set
    from trainer.progress import progress_bar

    with progress_bar("rendering phantoms", stacks, "stacks") as advance:
        n_shown = 0

        def show(n_done: int, _n_all: int) -> None:
            nonlocal n_shown
            advance(n_done - n_shown, "")
            n_shown = n_done

        manifest = write_phantom_set(
            out,
            stacks,
            seed=seed,
            shape=(side, side),
            pixel_size_um=pixel_size_um,
            families=tuple(family or TRAINING_FAMILIES),
            n_workers=workers,
            stacks_per_patient=stacks_per_patient,
            progress=show,
        )
    typer.echo(f"wrote {manifest}")
    for name, value in agreement_report(manifest).items():
        typer.echo(f"{name.replace('_', ' '):32} {value:.4g}")


@app.command("import")
def import_(
    folder: Annotated[
        Path, typer.Argument(help="Folder of VivaStack folders, image folders and TIFF stacks, at any depth.")
    ],
    labels: Annotated[Path, typer.Option(help="Labels CSV, one row a slice; see docs/data.md.")],
    out: Annotated[Path, typer.Option(help="Manifest CSV to write, or the folder for manifest.csv.")],
    word_map: Annotated[
        list[str] | None,
        typer.Option("--map", help='Stratum of a label word, as "stratum corneum=epidermis"; repeatable.'),
    ] = None,
    z_step_um: Annotated[
        float | None, typer.Option(help="Distance of neighbouring slices, where the labels give no depths.")
    ] = None,
    pixel_size_um: Annotated[
        float | None, typer.Option(help="Pitch of a pixel, instead of what the stacks state.")
    ] = None,
    max_value: Annotated[
        int | None, typer.Option(help="Grey level of full scale, as 4095 of a 12-bit camera in 16-bit files.")
    ] = None,
) -> None:
    """Check recorded stacks and their labels, and write them down as a data set."""
    from trainer.data.importing import import_set

    done = import_set(
        folder,
        labels,
        out,
        word_map=word_map or (),
        z_step_um=z_step_um,
        pixel_size_um=pixel_size_um,
        max_value=max_value,
    )
    for warning in done.warnings:
        typer.echo(f"rcm-trainer: warning: {warning}", err=True)
    counts = ", ".join(f"{n} {stratum}" for stratum, n in done.n_slices.items())
    typer.echo(
        f"wrote {done.manifest}: {done.n_stacks} stacks of {done.n_patients} patients; slices: {counts}"
    )


app.command()(cnn)
app.command()(rcn)
app.command()(calibrate)


@app.command()
def export(
    cnn: Annotated[Path, typer.Option(help="Run folder or checkpoint of the CNN.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    rcn: Annotated[
        Path | None, typer.Option(help="That of the RCN; without one the bundle labels single images.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the bundle.")] = "rcm-inception-toeplitz",
    version: Annotated[
        str | None, typer.Option(help="Version of the bundle. [default: this program's]")
    ] = None,
) -> None:
    """Write a model bundle for the daemon and check it."""
    from trainer.export import export_bundle

    manifest = export_bundle(cnn, rcn, out, name=name, version=version or __version__)
    n_bytes = sum(file.n_bytes for file in manifest.files.values())
    typer.echo(
        f"wrote {manifest.kind} bundle {manifest.name} {manifest.version} to {out}, {n_bytes / 1e6:.1f} MB"
    )


app.command()(quantise)
app.command()(evaluate)
app.command()(reproduce)
