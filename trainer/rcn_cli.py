"""The command `rcm-trainer rcn`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer

from rcm_daemon.errors import DataSetError
from trainer.options import (  # noqa: TC001 (typer reads the annotations)
    CacheOption,
    DataOption,
    DeviceOption,
    MethodOption,
    OutOption,
    SeedOption,
    SplitOption,
    StartOption,
    ThreadsOption,
    WorkersOption,
)


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
    from trainer.data.manifest import load_data_set
    from trainer.data.prepared import prepare
    from trainer.data.split import settle_split, stored_digest
    from trainer.embeddings import embed_set
    from trainer.methods import method_of
    from trainer.precision import choose_device, set_threads
    from trainer.rcn_recipe import preset as take_preset
    from trainer.run_folder import refuse_second_run, state_digest
    from trainer.starting import starting_point
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
    set_threads(threads)
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
        set_threads(1)  # steps over one slice are far too small to share between threads
    best = train_rcn(
        data_set,
        embeddings,
        parts,
        recipe,
        out,
        cnn_digest=digest,
        device=chosen,
        resume=resume,
        start_from=starting_point(start_from),
    )
    typer.echo(f"best validation accuracy {best['accuracy']:.4f}; snapshot in {out / 'best.pt'}")
