"""Commands of `rcm-trainer`: phantom, cnn, rcn, export, evaluate.

torch and the modules that need it are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rcm_daemon.errors import DataSetError, RcmError

app = typer.Typer(
    help="Train, export and evaluate networks that label skin strata in reflectance confocal stacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DataOption = Annotated[Path, typer.Option(help="Data set: a manifest CSV, or the folder that holds manifest.csv.")]
OutOption = Annotated[Path, typer.Option(help="Folder of this run; created if it does not exist.")]
CacheOption = Annotated[Path | None, typer.Option(help="Folder for prepared slices and embeddings. [default: DATA/cache]")]
SplitOption = Annotated[Path | None, typer.Option(help="A split.json drawn before. [default: the run's own, else drawn]")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads of torch on the CPU; 0 leaves its own choice.")]
WorkersOption = Annotated[int, typer.Option(help="Worker processes that prepare slices.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


def run() -> None:
    """Run the command line; a refusal is one sentence on stderr and the exit code of its kind."""
    try:
        app()
    except RcmError as error:
        print(f"rcm-trainer: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback()
def _commands() -> None:
    """Keep sub-commands by name whatever their number."""


@app.command()
def cnn(
    data: DataOption,
    out: OutOption,
    width: Annotated[float, typer.Option(help="Multiplier of Inception-V3's channel counts.")] = 0.25,
    size: Annotated[int, typer.Option(help="Side of the network's input in pixels, at least 75.")] = 192,
    epochs: Annotated[int, typer.Option(help="Number of epochs.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Slices a step.")] = 64,
    slices_per_epoch: Annotated[int, typer.Option(help="Slices drawn in each epoch; 0 takes all.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.02,
    label_smoothing: Annotated[float, typer.Option(help="Share of the target spread over the other strata.")] = 0.05,
    dropout: Annotated[float, typer.Option(help="Share of pooled features dropped.")] = 0.2,
    without: Annotated[list[str] | None, typer.Option(help="Kind of augmentation to leave out; repeatable.")] = None,
    shares: Annotated[str, typer.Option(help="Relative sizes of train,validation,test by patient.")] = "245,61,198",
    split: SplitOption = None,
    imagenet: Annotated[Path | None, typer.Option(help="torchvision inception_v3 weights (width 1 only).")] = None,
    start_from: Annotated[Path | None, typer.Option(help="CNN checkpoint to fine-tune from.")] = None,
    seed: SeedOption = 0,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    precision: Annotated[str, typer.Option(help="auto, full or mixed (bfloat16, on CUDA float16 if it must be).")] = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train the single-image classifier (Inception-V3, compact by default)."""
    from trainer.data.manifest import load_data_set
    from trainer.data.prepared import prepare
    from trainer.precision import choose_device
    from trainer.train_cnn import CnnRecipe, train_cnn

    recipe = CnnRecipe(
        width=width,
        size=size,
        dropout=dropout,
        n_epochs=epochs,
        batch_size=batch_size,
        slices_per_epoch=slices_per_epoch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        seed=seed,
        switched_off=tuple(without or ()),
    )
    chosen = choose_device(device)
    _set_threads(threads)
    data_set = load_data_set(data)
    parts = _split(data_set, split, out, seed, shares)
    prepared = prepare(data_set, size, cache or data_set.path.parent / "cache", workers)
    best = train_cnn(
        prepared,
        parts,
        recipe,
        out,
        device=chosen,
        precision=precision,
        resume=resume,
        imagenet=imagenet,
        start_from=start_from,
    )
    typer.echo(f"best validation accuracy {best['accuracy']:.4f}; snapshot in {out / 'best.pt'}")


def _set_threads(threads: int) -> None:
    import torch

    if threads > 0:
        torch.set_num_threads(threads)


def _split(data_set, split: Path | None, out: Path, seed: int, shares: str):  # type: ignore[no-untyped-def]
    from trainer.data.split import draw_split, load_split

    own = out / "split.json"
    if split is None and own.is_file():
        return load_split(own, data_set)
    try:
        numbers = [float(share) for share in shares.split(",")]
    except ValueError as error:
        raise DataSetError(f"shares must be three numbers joined by commas, got {shares}") from error
    parts = load_split(split, data_set) if split else draw_split(data_set, seed, numbers)
    parts.write(own)
    return parts
