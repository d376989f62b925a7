"""Commands of `rcm-trainer`: phantom, import, cnn, rcn, calibrate, export, quantise, evaluate, reproduce.

torch and the modules that need it are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rcm_daemon.errors import DataSetError, RcmError
from trainer.calibrate_cli import calibrate
from trainer.evaluate_cli import evaluate
from trainer.quantise_cli import quantise
from trainer.reproduce_cli import reproduce

app = typer.Typer(
    help="Train, export and evaluate networks that label skin strata in reflectance confocal stacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(calibrate)
app.command()(evaluate)
app.command()(quantise)
app.command()(reproduce)

DataOption = Annotated[
    Path, typer.Option(help="Data set: a manifest (CSV or Parquet), or the folder that holds it.")
]
OutOption = Annotated[Path, typer.Option(help="Folder of this run; created if it does not exist.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="Folder for prepared slices and embeddings. [default: DATA/cache]")
]
SplitOption = Annotated[
    Path | None, typer.Option(help="A split.json drawn before. [default: the run's own, else drawn]")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ThreadsOption = Annotated[
    int, typer.Option(min=0, help="Threads of torch on the CPU; 0 leaves its own choice.")
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Worker processes that prepare slices.")]
MethodOption = Annotated[str | None, typer.Option(help="Method of the paper's comparison, by plain name.")]
StartOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|default",
        help="Run folder, checkpoint or bundle to fine-tune from; default: the bundle that comes along.",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]


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


@app.command()
def cnn(
    data: DataOption,
    out: OutOption,
    method: MethodOption = None,
    width: Annotated[
        float, typer.Option(min=0.05, max=2.0, help="Multiplier of Inception-V3's channel counts.")
    ] = 0.25,
    size: Annotated[int, typer.Option(help="Side of the network's input in pixels, at least 75.")] = 192,
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Slices a step.")] = 64,
    slices_per_epoch: Annotated[
        int, typer.Option(min=0, help="Slices drawn in each epoch; 0 takes all.")
    ] = 0,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate of AdamW.")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Weight decay of AdamW.")] = 0.02,
    label_smoothing: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the target spread over the other strata.")
    ] = 0.05,
    dropout: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of pooled features dropped.")] = 0.2,
    without: Annotated[
        list[str] | None, typer.Option(help="Kind of augmentation to leave out; repeatable.")
    ] = None,
    distance_weight: Annotated[
        float, typer.Option(min=0.0, help="Weight of telling distances to the boundaries, 0 = strata alone.")
    ] = 0.0,
    teacher: Annotated[
        Path | None, typer.Option(help="Run folder or checkpoint of a CNN to learn from (distillation).")
    ] = None,
    teacher_weight: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the teacher's word against the labels'.")
    ] = 0.7,
    shares: Annotated[
        str, typer.Option(help="Relative sizes of train,validation,test[,calibration] by patient.")
    ] = "245,61,198",
    split: SplitOption = None,
    extend_split: Annotated[
        Path | None, typer.Option(help="The split.json of this set when it held fewer stacks.")
    ] = None,
    new_shares: Annotated[
        str, typer.Option(help="Relative sizes of the parts that patients new to it go to.")
    ] = "1,0,0,0",
    imagenet: Annotated[
        Path | None, typer.Option(help="torchvision inception_v3 weights (width 1 only).")
    ] = None,
    start_from: StartOption = None,
    seed: SeedOption = 0,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, full or mixed (bfloat16, on CUDA float16 if it must be).")
    ] = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train the convolutional classifier (Inception-V3, compact by default; iv3-context sees neighbours)."""
    from trainer.data.manifest import load_data_set
    from trainer.data.prepared import prepare
    from trainer.data.split import settle_split
    from trainer.methods import method_of
    from trainer.precision import choose_device
    from trainer.run_folder import refuse_second_run
    from trainer.train_cnn import CnnRecipe, train_cnn

    refuse_second_run(out, resume=resume)
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
        distance_weight=distance_weight,
        teacher_weight=teacher_weight if teacher else 0.0,
        **method_of(method, "cnn"),
    )
    chosen = choose_device(device)
    _set_threads(threads)
    data_set = load_data_set(data)
    parts = settle_split(
        data_set,
        out,
        split=split,
        extended=extend_split,
        seed=seed,
        shares=shares,
        new_shares=new_shares,
    )
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
        start_from=_start(start_from),
        teacher=teacher,
    )
    typer.echo(f"best validation accuracy {best['accuracy']:.4f}; snapshot in {out / 'best.pt'}")


@app.command()
def rcn(
    data: DataOption,
    cnn: Annotated[Path, typer.Option(help="Run folder or checkpoint of the CNN whose embeddings are used.")],
    out: OutOption,
    method: MethodOption = None,
    preset: Annotated[
        str, typer.Option(help="ours (whole stacks), live (stacks being acquired) or paper (as published).")
    ] = "ours",
    half_width: Annotated[
        int | None, typer.Option(help="D of the Toeplitz attention (kernel 2D+1); 1 by default.")
    ] = None,
    max_slices: Annotated[int | None, typer.Option(help="Clip longer stacks; longest of global's.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Number of epochs, instead of the preset's.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Stacks a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Learning rate of Adam.")] = None,
    recurrent_l1: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the sum of absolute recurrent weights.")
    ] = None,
    recurrent_dropout: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of the hidden state dropped.")
    ] = None,
    input_dropout: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of the embeddings' values dropped.")
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of the target spread over the other strata."),
    ] = None,
    copies: Annotated[
        int | None, typer.Option(min=0, help="Augmented copies of every training stack.")
    ] = None,
    prefixes: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of training stacks cut at a random slice."),
    ] = None,
    dropped_slices: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Largest share of slices left out of a stack.")
    ] = None,
    split: SplitOption = None,
    new_shares: Annotated[
        str | None,
        typer.Option(
            help="Where the set has grown since the CNN was trained: relative sizes of the parts that new "
            "patients go to."
        ),
    ] = None,
    start_from: StartOption = None,
    seed: SeedOption = 0,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train a recurrent network, by default with Toeplitz attention, on a trained CNN's embeddings."""
    import torch

    from trainer.data.manifest import load_data_set
    from trainer.data.prepared import prepare
    from trainer.data.split import settle_split, stored_digest
    from trainer.embeddings import embed_set
    from trainer.methods import method_of
    from trainer.precision import choose_device
    from trainer.rcn_recipe import preset as take_preset
    from trainer.run_folder import refuse_second_run, state_digest
    from trainer.train_cnn import load_cnn
    from trainer.train_rcn import train_rcn

    refuse_second_run(out, resume=resume)
    recipe = take_preset(
        preset,
        method_of(method, "rcn"),
        half_width=half_width,
        max_slices=max_slices,
        n_epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        recurrent_l1=recurrent_l1,
        recurrent_dropout=recurrent_dropout,
        input_dropout=input_dropout,
        label_smoothing=label_smoothing,
        n_copies=copies,
        prefixes=prefixes,
        dropped_slices=dropped_slices,
        seed=seed,
    )
    chosen = choose_device(device)
    _set_threads(threads)
    network, checkpoint = load_cnn(cnn)
    if network.n_slices > 1:
        raise DataSetError(f"a recurrent network takes a CNN of single slices, {cnn} sees {network.n_slices}")
    data_set = load_data_set(data)
    # The CNN's own split: with another one, patients it was trained on would stand in the validation part.
    beside = (cnn if cnn.is_dir() else cnn.parent) / "split.json"
    if stored_digest(split or beside) != checkpoint["provenance"]["split_digest"]:
        raise DataSetError(
            f"an RCN must be trained on its CNN's split, {split or beside} is another than that of {cnn}"
        )
    if new_shares is None:
        parts = settle_split(data_set, out, split=split or beside)
    else:
        parts = settle_split(data_set, out, extended=split or beside, seed=seed, new_shares=new_shares)
    where = cache or data_set.path.parent / "cache"
    prepared = prepare(data_set, network.size, where, workers)
    train, validation = (parts.stack_indices(data_set, part) for part in ("train", "validation"))
    wanted = {0: sorted([*train.tolist(), *validation.tolist()])}
    wanted.update({copy: train.tolist() for copy in range(1, recipe.n_copies + 1)})
    embeddings = embed_set(network, prepared, wanted, where, chosen)
    digest = state_digest(network.state_dict())
    if chosen.type == "cpu":
        torch.set_num_threads(1)  # steps over one slice are far too small to share between threads
    best = train_rcn(
        data_set,
        embeddings,
        parts,
        recipe,
        out,
        cnn_digest=digest,
        device=chosen,
        resume=resume,
        start_from=_start(start_from),
    )
    typer.echo(f"best validation accuracy {best['accuracy']:.4f}; snapshot in {out / 'best.pt'}")


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
    import rcm_daemon
    from trainer.export import export_bundle

    manifest = export_bundle(cnn, rcn, out, name=name, version=version or rcm_daemon.__version__)
    n_bytes = sum(file.n_bytes for file in manifest.files.values())
    typer.echo(
        f"wrote {manifest.kind} bundle {manifest.name} {manifest.version} to {out}, {n_bytes / 1e6:.1f} MB"
    )


def _start(path: str | None) -> Path | None:
    from rcm_daemon.bundle.location import default_bundle_path

    if path is None:
        return None
    return default_bundle_path() if path == "default" else Path(path)


def _set_threads(threads: int) -> None:
    import torch

    if threads > 0:
        torch.set_num_threads(threads)


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
) -> None:
    """Check recorded stacks and their labels, and write them down as a data set."""
    from trainer.data.importing import import_set

    done = import_set(
        folder, labels, out, word_map=word_map or (), z_step_um=z_step_um, pixel_size_um=pixel_size_um
    )
    for warning in done.warnings:
        typer.echo(f"rcm-trainer: warning: {warning}", err=True)
    counts = ", ".join(f"{n} {stratum}" for stratum, n in done.n_slices.items())
    typer.echo(
        f"wrote {done.manifest}: {done.n_stacks} stacks of {done.n_patients} patients; slices: {counts}"
    )
