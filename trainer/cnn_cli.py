"""The command `rcm-trainer cnn`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer

from trainer.options import (  # noqa: TC001 (typer reads the annotations)
    CacheOption,
    DataOption,
    DeviceOption,
    MethodOption,
    OutOption,
    PrecisionOption,
    SeedOption,
    SplitOption,
    StartOption,
    ThreadsOption,
    WorkersOption,
)


def cnn(
    data: DataOption,
    out: OutOption,
    method: MethodOption = None,
    width: Annotated[
        float, typer.Option(min=0.05, max=2.0, help="Multiplier of Inception-V3's channel counts.")
    ] = 0.25,
    size: Annotated[int, typer.Option(min=75, help="Side of the network's input in pixels.")] = 192,
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
        str | None,
        typer.Option(
            help="Relative sizes of train,validation,test[,calibration] by patient. [default: those of the "
            "run's own split, else 245,61,198]"
        ),
    ] = None,
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
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train the convolutional classifier (Inception-V3, compact by default; iv3-context sees neighbours)."""
    from trainer.data.manifest import load_data_set
    from trainer.data.prepared import prepare
    from trainer.data.split import settle_split
    from trainer.methods import method_of
    from trainer.precision import choose_device, set_threads
    from trainer.run_folder import refuse_second_run
    from trainer.starting import starting_point
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
    set_threads(threads)
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
        start_from=starting_point(start_from),
        teacher=teacher,
    )
    typer.echo(f"best validation accuracy {best['accuracy']:.4f}; snapshot in {out / 'best.pt'}")
